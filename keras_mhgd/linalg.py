"""Truncated right singular vectors of feature maps, and their alignment."""

import tensorflow as tf

from keras_mhgd.precision import as_float

# Relative to the largest squared singular value, per floating-point type:
# below, a squared singular value is round-off of the Gram matrix.
_ROUND_OFF = {tf.float32: 1e-6, tf.float64: 1e-13}


def right_singular_vectors(x: tf.Tensor, k: int) -> tf.Tensor:
    """Computes the `k` leading right singular vectors of each matrix.

    With `X = U S V^T`, gives the first `k` columns of `V`, unit length, in
    descending order of their singular values. They come from the
    eigendecomposition of the smaller of the Gram matrices `X^T X` and
    `X X^T`. Signs are those of the linear-algebra library.

    A singular value of zero has no direction that the data determines: its
    column is zero. So are the columns beyond `min(HW, D)`.

    The gradient is the exact one, in closed form. With `A = X^T X`, `l` its
    eigenvalues and `g` the gradient that arrives,

        dX = X (Z V^T + V Z^T),
        Z_j = sum over i != j of v_i (v_i . g_j) / (l_j - l_i),

    where `1 / d` is taken as `d / (d^2 + e^2)`, `e` being round-off: it stays
    finite for equal and for zero singular values.

    Args:
        x: Matrices `(batch, HW, D)`, any float dtype.
        k: Number of vectors, >= 1.

    Returns:
        Vectors `(batch, D, k)`; float64 if `x` is float64, else float32. A
        matrix with a value that is not finite gives NaN, no exception.

    Raises:
        ValueError: If `x` is not of rank 3 or `k` is not positive.

    Example:
        >>> x = tf.random.normal((8, 49, 64))
        >>> keras_mhgd.linalg.right_singular_vectors(x, k=4).shape
        TensorShape([8, 64, 4])

    Reference:
        C. Ionescu, O. Vantzos, C. Sminchisescu, "Matrix Backpropagation for
        Deep Networks with Structured Layers", ICCV 2015.
    """
    x = as_float(x)
    if x.shape.rank != 3:
        raise ValueError(
            "`x` must be a batch of matrices (batch, HW, D). "
            f"Received: x of shape {x.shape}."
        )
    if k < 1:
        raise ValueError(f"`k` must be 1 or more. Received: k={k}.")
    # The eigensolver aborts the program's step on NaN: such matrices go
    # through as zeros and come out as NaN.
    finite = tf.reduce_all(tf.math.is_finite(x), axis=(1, 2), keepdims=True)
    vectors = _leading_vectors(tf.where(finite, x, 0), k)
    return tf.where(finite, vectors, float("nan"))


def _leading_vectors(x: tf.Tensor, k: int) -> tf.Tensor:
    tall = None in x.shape[1:] or x.shape[1] >= x.shape[2]
    round_off = _ROUND_OFF[x.dtype]

    @tf.custom_gradient
    def decompose(x):
        # Vectors don't depend on the scale of x; at largest entry 1, squares
        # neither overflow nor underflow.
        scale = tf.reduce_max(tf.abs(x), axis=(1, 2), keepdims=True)
        scale = tf.where(scale > 1e-30, scale, 1)
        x = x / scale
        gram = tf.matmul(x, x, transpose_a=tall, transpose_b=not tall)
        values, basis = tf.linalg.eigh(gram)
        values = tf.reverse(values, [-1])
        basis = tf.reverse(basis, [-1])
        top, largest = values[:, tf.newaxis, :k], values[:, tf.newaxis, :1]
        tolerance = round_off * largest
        nonzero = (top > tolerance) & (largest > 0)
        vectors = basis[:, :, :k]
        if not tall:
            vectors = tf.matmul(x, vectors, transpose_a=True)
            vectors = tf.math.l2_normalize(vectors, axis=1)
        vectors = tf.where(nonzero, vectors, 0)

        def gradient(upstream):
            upstream = tf.where(nonzero, upstream, 0)
            gap = top - values[:, :, tf.newaxis]
            factor = gap / (gap**2 + tolerance**2 + 1e-30)
            if tall:
                z = tf.matmul(basis, upstream, transpose_a=True)
                z = tf.matmul(basis, factor * z)
            else:
                # The directions outside the row space of x have l_i = 0.
                # Taking 1 / l_j out of the sum needs the small side's basis
                # alone: 1 / (l_j - l_i) = 1 / l_j + l_i / (l_j (l_j - l_i)).
                z = tf.matmul(basis, tf.matmul(x, upstream), transpose_a=True)
                z = tf.matmul(x, tf.matmul(basis, factor * z), transpose_a=True)
                along = tf.reduce_sum(vectors * upstream, 1, keepdims=True)
                z += upstream - vectors * along
                z /= tf.where(nonzero, top, 1)
            return (
                tf.matmul(tf.matmul(x, z), vectors, transpose_b=True)
                + tf.matmul(tf.matmul(x, vectors), z, transpose_b=True)
            ) / scale

        return vectors, gradient

    vectors = decompose(x)
    missing = k - tf.shape(vectors)[-1]
    vectors = tf.pad(vectors, [[0, 0], [0, 0], [0, missing]])
    return tf.ensure_shape(vectors, (x.shape[0], x.shape[2], k))


def align(student_vectors: tf.Tensor, teacher_vectors: tf.Tensor) -> tf.Tensor:
    """Picks the student's vector nearest to the teacher's, with its sign.

    Of a sample's `k` student vectors takes the one whose cosine with the
    teacher's vector is greatest in magnitude, times the sign of that cosine.
    This removes the ambiguity of order and sign of singular vectors. The
    choice and the sign are constants for the gradient.

    Args:
        student_vectors: Unit vectors in columns, `(batch, D, k)`.
        teacher_vectors: Unit vectors `(batch, D)`.

    Returns:
        Aligned student vectors `(batch, D)`.

    Raises:
        ValueError: If the shapes don't belong together.
    """
    student_vectors = tf.convert_to_tensor(student_vectors)
    teacher_vectors = tf.convert_to_tensor(teacher_vectors)
    if (
        student_vectors.shape.rank != 3
        or teacher_vectors.shape.rank != 2
        or student_vectors.shape[1] != teacher_vectors.shape[1]
    ):
        raise ValueError(
            "`student_vectors` must be (batch, D, k) and `teacher_vectors` "
            f"(batch, D) with the same D. Received: {student_vectors.shape} "
            f"and {teacher_vectors.shape}."
        )
    cosines = tf.einsum("ndk,nd->nk", student_vectors, teacher_vectors)
    best = tf.argmax(tf.abs(cosines), axis=1)
    signs = tf.sign(tf.gather(cosines, best, batch_dims=1))
    chosen = tf.gather(student_vectors, best, axis=2, batch_dims=1)
    return tf.stop_gradient(signs)[:, tf.newaxis] * chosen
