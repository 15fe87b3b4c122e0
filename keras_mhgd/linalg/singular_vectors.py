"""Computes and aligns leading right singular vectors of feature maps."""

import tensorflow as tf

from keras_mhgd.checks import require_known, require_one_or_more
from keras_mhgd.linalg import subspace
from keras_mhgd.linalg.precision import as_float

# A squared singular value counts as round-off of the maps if it is below this
# fraction of the largest one. The fraction depends on the maps' dtype.
_ROUND_OFF = {tf.float32: 1e-6, tf.float64: 1e-13}
# For Gram matrices smaller than this, or smaller than eight times the number of
# vectors, eigendecomposition is faster than subspace iteration.
_LARGE = 32
GRADIENTS = ("exact", "published")


def right_singular_vectors(
    x: tf.Tensor, k: int, solver: str | None = None, gradient: str = "exact"
) -> tf.Tensor:
    """Computes the `k` leading right singular vectors of each matrix.

    With `X = U S V^T`, the result is the first `k` columns of `V`, of unit
    length, in descending order of their singular values. They are computed from
    the smaller of the Gram matrices `X^T X` and `X X^T`. Signs are arbitrary.
    For its eigendecomposition, the Gram matrix is computed in float64: squaring
    in float32 would lose the vectors of small singular values.

    The data determines no direction for a singular value of zero, so its column
    is zero. The columns beyond `min(HW, D)` are zero as well.

    The gradient is exact, in closed form. Let `l` be the eigenvalues of
    `A = X^T X`, and `g` the upstream gradient. Then

        dX = X (Z V^T + V Z^T),
        Z_j = sum over i != j of v_i (v_i . g_j) / (l_j - l_i).

    Here `1 / d` is computed as `d^3 / (d^4 + e^4)`, with `e` the round-off. So
    it stays finite for equal and for zero singular values. Subspace iteration
    yields the first terms of the sum, and conjugate gradients add the rest.

    Args:
        x: Matrices `(batch, HW, D)`, any float dtype.
        k: Number of vectors, >= 1.
        solver: How vectors are computed from the Gram matrix. `"eigh"` uses
            its eigendecomposition. `"subspace"` uses subspace iteration, which
            is as precise as float32 whatever the dtype, and needs a static `D`.
            `None` chooses the faster of the two on a CPU by the shape, and
            `"eigh"` for float64. On maps whose singular values decay, the two
            solvers agree. Where singular values hardly decay, as in noise, many
            directions are nearly as good as the best. There the vectors of the
            iteration are orthonormal and `|X v|` is within 1 % of the singular
            value, but their angle to the exact vectors is arbitrary.
        gradient: `"exact"` or `"published"`. The latter is the gradient of the
            code of MHGD's authors, to train as that code does. It is zero where
            `2/3 < HW / D < 3/2`, and otherwise twice the exact gradient. For
            `HW < D`, it is further reduced by
            `sum over j of X v_j (g_j - v_j (v_j . g_j))^T / l_j`.

    Returns:
        Vectors `(batch, D, k)`; float64 if `x` is float64, else float32. A
        matrix gives NaN, and no exception, if one of its values or the sum of
        their magnitudes is not finite.

    Raises:
        ValueError: If `x` is not of rank 3, `k` is not positive, `solver` or
            `gradient` is unknown, or one of them needs static sizes.

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
    require_one_or_more(k=k)
    if solver is None:
        solver = _faster(x, k)
    require_known("solver", solver, ["eigh", "subspace"])
    if solver == "subspace" and x.shape[2] is None:
        raise ValueError(
            "`x` must have a static D for solver='subspace'. "
            f"Received: x of shape {x.shape}. Take solver='eigh'."
        )
    require_known("gradient", gradient, GRADIENTS)
    if gradient == "published" and None in x.shape[1:]:
        raise ValueError(
            "`x` must have a static HW and D for gradient='published'. "
            f"Received: x of shape {x.shape}. Take gradient='exact'."
        )
    as_published = gradient == "published"
    if as_published and 2 / 3 < x.shape[1] / x.shape[2] < 3 / 2:
        x = tf.stop_gradient(x)
    vectors = _leading_vectors(x, k, solver, as_published)
    missing = k - tf.shape(vectors)[-1]
    vectors = tf.pad(vectors, [[0, 0], [0, 0], [0, missing]])
    return tf.ensure_shape(vectors, (x.shape[0], x.shape[2], k))


def _faster(x: tf.Tensor, k: int) -> str:
    if x.dtype == tf.float64 or None in x.shape[1:]:
        return "eigh"
    return "subspace" if min(x.shape[1:]) >= max(_LARGE, 8 * k) else "eigh"


def _leading_vectors(
    x: tf.Tensor, k: int, solver: str, as_published: bool
) -> tf.Tensor:
    tall = None in x.shape[1:] or x.shape[1] >= x.shape[2]
    iterates = solver == "subspace"
    round_off = subspace.ROUND_OFF if iterates else _ROUND_OFF[x.dtype]

    @tf.custom_gradient
    def decompose(x):
        # Without this, an outer tape would also record the operations below.
        x = tf.stop_gradient(x)
        # Singular vectors don't depend on the scale of x. With this scale,
        # squares neither overflow nor underflow. The solvers would end the
        # program's step on NaN. So matrices that aren't finite are solved as
        # zeros, and their result is set to NaN.
        size = tf.reduce_mean(tf.abs(x), axis=(1, 2), keepdims=True)
        finite = size < x.dtype.max
        scale = tf.where(finite & (size > 1e-30), 1 / size, 0)
        x = tf.math.multiply_no_nan(x, scale)
        exact = x if iterates else tf.cast(x, tf.float64)
        gram = tf.matmul(exact, exact, transpose_a=tall, transpose_b=not tall)
        trace = tf.linalg.trace(gram)[:, tf.newaxis, tf.newaxis]
        trace = tf.where(trace > 0, trace, 1)
        gram /= trace
        if iterates:
            values, basis = subspace.leading_eigenvectors(gram, k)
        else:
            values, basis = subspace.eigenvectors(gram)
        top, leading = values[:, :k], basis[:, :k]
        tolerance = round_off * values[:, :1]
        nonzero = top > tolerance
        vectors = leading
        if not tall:
            vectors = tf.math.l2_normalize(tf.matmul(leading, exact), axis=2)
        vectors = tf.where(nonzero, vectors, 0)

        def solve(right):
            unit = tf.maximum(tolerance, 1e-30)
            gap = (top - tf.linalg.matrix_transpose(values)) / unit
            z = tf.matmul(right, basis, transpose_b=True)
            z = tf.matmul(z * gap**3 / (gap**4 + 1) / unit, basis)
            if iterates:
                z = subspace.complete(gram, top, leading, right, z, tolerance)
            return z

        def gradient(upstream):
            upstream = tf.linalg.matrix_transpose(upstream)
            upstream = tf.cast(upstream, exact.dtype)
            upstream = tf.where(nonzero, upstream, 0)
            across = 0.0
            if tall:
                z = solve(upstream)
            else:
                # The directions outside the row space of x have l_i = 0. With
                # 1 / (l_j - l_i) = 1 / l_j + l_i / (l_j (l_j - l_i)), the
                # rest of the sum needs only the basis of the small side.
                z = tf.matmul(upstream, exact, transpose_b=True)
                z = tf.matmul(solve(z / trace), exact)
                along = tf.reduce_sum(vectors * upstream, 2, keepdims=True)
                across = upstream - vectors * along
                z += across
                z /= tf.where(nonzero, top, 1)
            left = tf.concat([z, vectors], axis=1)
            right = tf.concat([vectors, z], axis=1)
            if as_published:
                across /= tf.where(nonzero, top, 1)
                right = tf.concat([2 * vectors, 2 * z - across], axis=1)
            right *= tf.cast(scale, right.dtype) / trace
            left, right = (tf.cast(rows, x.dtype) for rows in (left, right))
            return tf.matmul(tf.matmul(x, left, transpose_b=True), right)

        columns = tf.cast(tf.linalg.matrix_transpose(vectors), x.dtype)
        return tf.where(finite, columns, float("nan")), gradient

    return decompose(x)


def align(student_vectors: tf.Tensor, teacher_vectors: tf.Tensor) -> tf.Tensor:
    """Picks the student's vector nearest to the teacher's, and its sign.

    Among the `k` student vectors of a sample, this takes the one whose cosine
    with the teacher's vector is greatest in magnitude, times the sign of that
    cosine. This removes the ambiguity of order and sign of singular vectors.
    The choice and the sign are constants for the gradient.

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
