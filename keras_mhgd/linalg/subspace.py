"""Computes leading eigenvectors of Gram matrices, mostly by matrix products.

Only matrices of a few rows and columns are decomposed. XLA decomposes small
matrices fast, but whole Gram matrices slowly.
"""

import numpy as np
import tensorflow as tf

from keras_mhgd.tracing import traced_once

# Number of vectors that are iterated besides the wanted ones. The wanted ones
# converge at the ratio of their eigenvalues to the first one that is left out.
_EXTRA = 4
# Steps in each round of the iteration. The first round takes powers of the
# matrix, the others take polynomials with ever better bounds. Rows are made
# orthonormal after each step. Otherwise, two steps would lose the rows of small
# eigenvalues.
_STEPS = (2, 3, 7)
_SOLVER_STEPS = 6
# Relative additions to the diagonal of the matrix of the rows' inner products.
# The second one is added for each of an inner product's n terms. With these
# additions, Cholesky factors exist in spite of round-off. But each row keeps
# that fraction of the rows before. In most maps the first row has by far the
# largest eigenvalue, so its addition is the smallest.
_JITTER, _JITTER_PER_TERM, _FIRST_JITTER = 1e-5, 1.5e-7, 1e-7
# A squared length below this counts as zero.
_TINY = 1e-37
# Differences of eigenvalues below this fraction of the largest are round-off.
ROUND_OFF = 4e-6


def eigenvectors(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes all eigenvectors of each symmetric matrix.

    Args:
        matrix: Symmetric matrices `(batch, n, n)`.

    Returns:
        Eigenvalues `(batch, n, 1)`, descending, and eigenvectors in rows,
        `(batch, n, n)`.
    """
    values, vectors = tf.linalg.eigh(matrix)
    rows = tf.linalg.matrix_transpose(vectors)
    return tf.reverse(values, [1])[:, :, tf.newaxis], tf.reverse(rows, [1])


def leading_eigenvectors(
    gram: tf.Tensor, k: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the leading eigenvectors of each matrix, and a few more.

    This is block subspace iteration on `k + 4` vectors. It applies powers of
    the matrix, and then Chebyshev polynomials that are small below the block's
    own eigenvalues. Last, it takes the eigenvectors within the span
    (Rayleigh-Ritz).

    Args:
        gram: Symmetric positive semi-definite matrices `(batch, n, n)` of
            trace 1 or 0; `n` is static.
        k: Number of vectors wanted.

    Returns:
        values: Eigenvalues `(batch, m, 1)`, descending, `m = min(k + 4, n)`.
        vectors: Eigenvectors in rows, `(batch, m, n)`; zero for eigenvalues
            of zero. Rows past `k` are only good as a start of `complete`.

    Reference:
        Y. Zhou, Y. Saad, M. Tiago, J. Chelikowsky, "Self-consistent-field
        calculations using Chebyshev-filtered subspace iteration", Journal of
        Computational Physics 219, 2006.
    """
    n = gram.shape[-1]
    if n <= k + _EXTRA:
        values, vectors = eigenvectors(gram)
    else:
        size = k + _EXTRA
        start = np.random.default_rng(0).normal(size=(size, n))
        start = tf.constant(start, gram.dtype)
        # TensorFlow would optimise each call with a constant separately.
        start = tf.raw_ops.PlaceholderWithDefault(
            input=start, shape=start.shape
        )
        values, vectors = _leading(gram, start)
        values = tf.ensure_shape(values, (gram.shape[0], size, 1))
        vectors = tf.ensure_shape(vectors, (gram.shape[0], size, n))
    length = tf.sqrt(tf.maximum(_squares(vectors), _TINY))
    nonzero = values > ROUND_OFF * values[:, :1]
    return values, tf.where(nonzero, vectors / length, 0)


@traced_once
def complete(
    gram: tf.Tensor,
    values: tf.Tensor,
    vectors: tf.Tensor,
    right: tf.Tensor,
    start: tf.Tensor,
    tolerance: tf.Tensor,
) -> tf.Tensor:
    """Solves `z (l I - gram) = r` away from the leading eigenvectors.

    This solves for each leading eigenvalue `l` and its row `r`. It uses
    conjugate gradients in the complement of all leading eigenvectors, where the
    matrix `l I - gram` is positive.

    Args:
        gram: Matrices `(batch, n, n)`.
        values: The leading eigenvalues of `gram`, `(batch, k, 1)`.
        vectors: The eigenvectors in rows, `(batch, k, n)`.
        right: Rows `r`, `(batch, k, n)`.
        start: First guess of `z`, `(batch, k, n)`. Its part along `vectors` is
            kept.
        tolerance: `(batch, 1, 1)`. Differences of eigenvalues below this are
            round-off.

    Returns:
        Rows `z`, `(batch, k, n)`.
    """

    def apply(rows):
        return values * rows - tf.matmul(rows, gram)

    def project(rows):
        inside = tf.matmul(rows, vectors, transpose_b=True)
        return rows - tf.matmul(inside, vectors)

    residual = project(right - apply(start))
    # Rows don't change any more once they are solved to round-off.
    solved = 1e-14 * _squares(right)
    solution, direction, size = start, residual, _squares(residual)
    for _ in range(_SOLVER_STEPS):
        image = apply(direction)
        curvature = tf.reduce_sum(direction * image, 2, keepdims=True)
        live = (size > solved) & (curvature > tolerance * _squares(direction))
        step = tf.where(live, tf.math.divide_no_nan(size, curvature), 0)
        solution += step * direction
        # The projection is repeated since round-off leaves parts along the
        # leading vectors. They have no curvature, so steps along them would be
        # huge.
        residual = project(residual - step * image)
        before, size = size, _squares(residual)
        growth = tf.where(live, tf.math.divide_no_nan(size, before), 0)
        direction = residual + growth * direction
    return solution


@traced_once
def _leading(gram: tf.Tensor, start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes leading eigenvectors, orthogonal but of any length.

    Args:
        gram: As in `leading_eigenvectors`.
        start: Rows that the iteration starts from, `(m, n)`.

    Returns:
        Eigenvalues `(batch, m, 1)`, descending, and rows `(batch, m, n)`.
    """
    block = tf.tile(start[tf.newaxis], [tf.shape(gram)[0], 1, 1])
    jitter = _jitter(block)
    bound = tf.zeros_like(gram[:, :1, :1])
    for steps in _STEPS:
        block = _filter(gram, block, bound, jitter, steps)
        image = tf.matmul(block, gram)
        bound = tf.reduce_sum(image * block, 2, keepdims=True)
        bound = tf.maximum(tf.reduce_min(bound, 1, keepdims=True), 0)
    # Two further passes remove what the first pass left. Rows in excess of the
    # rank are short, and are remains of other rows. They become zero, so no
    # direction counts twice.
    for _ in range(2):
        block = _orthonormal(block, block, jitter)
    squares = _squares(block)
    block = tf.where(squares > 0.5, block * tf.math.rsqrt(squares), 0)
    inner = tf.matmul(tf.matmul(block, gram), block, transpose_b=True)
    values, rotation = eigenvectors(inner)
    return values, tf.matmul(rotation, block)


def _filter(
    gram: tf.Tensor,
    block: tf.Tensor,
    bound: tf.Tensor,
    jitter: tf.Tensor,
    steps: int,
) -> tf.Tensor:
    """Applies a Chebyshev polynomial that is small from 0 to `bound`.

    The polynomial is of the second kind and of degree `steps`. Its recurrence
    gives powers of the matrix if the bound is 0.
    """
    centre, square = bound / 2, bound**2 / 16

    def step(count, block, previous):
        image = tf.matmul(block, gram) - centre * block - square * previous
        both = _orthonormal(image, tf.concat([image, block], 2), jitter)
        return count + 1, *tf.split(both, 2, axis=2)

    _, block, _ = tf.while_loop(
        lambda count, *_: count < steps,
        step,
        (0, block, tf.zeros_like(block)),
        maximum_iterations=steps,
    )
    return block


def _jitter(block: tf.Tensor) -> tf.Tensor:
    """Computes the factors of the inner products of a block's rows."""
    size, n = tf.unstack(tf.shape(block)[1:])
    jitter = _JITTER + _JITTER_PER_TERM * tf.cast(n, tf.float64)
    jitters = tf.concat([[_FIRST_JITTER], tf.fill([size - 1], jitter)], 0)
    return tf.cast(1 + tf.linalg.diag(jitters), block.dtype)


def _orthonormal(
    block: tf.Tensor, rows: tf.Tensor, jitter: tf.Tensor
) -> tf.Tensor:
    """Applies to `rows` the combination that makes `block` orthonormal.

    Args:
        block: Linearly independent rows `(batch, m, n)`.
        rows: Rows `(batch, m, anything)`.
        jitter: From `_jitter`, `(m, m)`.
    """
    inner = jitter * tf.matmul(block, block, transpose_b=True)
    diagonal = tf.linalg.diag_part(inner) + _TINY
    inner = tf.linalg.set_diag(inner, diagonal)
    return tf.linalg.triangular_solve(tf.linalg.cholesky(inner), rows)


def _squares(rows: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(rows**2, axis=2, keepdims=True)
