"""Leading eigenvectors of Gram matrices, mostly by matrix products.

Beside products there are decompositions of a few rows and columns alone. XLA
runs these fast; its decompositions of whole Gram matrices it doesn't.
"""

import numpy as np
import tensorflow as tf

# Vectors iterated beside the wanted ones: the wanted converge at the ratio of
# their eigenvalues to the first that is left out.
_EXTRA = 4
# Of powers, then of polynomials with ever better bounds. Rows are made
# orthonormal after each: after two, those of small eigenvalues would be lost.
_STEPS = (2, 3, 7)
_SOLVER_STEPS = 6
# Relative additions to the diagonals of rows' products, plus the second for
# each of n terms: Cholesky factors exist in spite of round-off. Rows keep that
# much of the rows before; so the first, in most maps the one of the largest
# eigenvalue by far, has least.
_JITTER, _JITTER_PER_TERM, _FIRST_JITTER = 1e-5, 1.5e-7, 1e-7
# A squared length below is zero.
_TINY = 1e-37
# Relative to the largest eigenvalue: differences below are round-off.
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

    Block subspace iteration on `k + 4` vectors: powers of the matrix, then a
    Chebyshev polynomial that is small below the block's own eigenvalues,
    then the eigenvectors within the span (Rayleigh-Ritz).

    Args:
        gram: Symmetric positive semi-definite matrices `(batch, n, n)` of
            trace 1 or 0; `n` is static.
        k: Number of vectors wanted.

    Returns:
        values: Eigenvalues `(batch, m, 1)`, descending, `m = min(k + 4, n)`.
        vectors: Eigenvectors in rows, `(batch, m, n)`; zero for eigenvalues
            of zero. Those past `k` are good for a start of `complete` only.

    Reference:
        Y. Zhou, Y. Saad, M. Tiago, J. Chelikowsky, "Self-consistent-field
        calculations using Chebyshev-filtered subspace iteration", Journal of
        Computational Physics 219, 2006.
    """
    n = gram.shape[-1]
    if n <= k + _EXTRA:
        values, vectors = eigenvectors(gram)
    else:
        block = _leading_block(gram, k + _EXTRA)
        inner = tf.matmul(tf.matmul(block, gram), block, transpose_b=True)
        values, rotation = eigenvectors(inner)
        vectors = tf.matmul(rotation, block)
    length = tf.sqrt(tf.maximum(_squares(vectors), _TINY))
    nonzero = values > ROUND_OFF * values[:, :1]
    return values, tf.where(nonzero, vectors / length, 0)


def complete(
    gram: tf.Tensor,
    values: tf.Tensor,
    vectors: tf.Tensor,
    right: tf.Tensor,
    start: tf.Tensor,
    tolerance: tf.Tensor,
) -> tf.Tensor:
    """Solves `z (l I - gram) = r` away from the leading eigenvectors.

    For each leading eigenvalue `l` and its row `r`, by conjugate gradients in
    the complement of all leading eigenvectors, where the matrix is positive.

    Args:
        gram: Matrices `(batch, n, n)`.
        values: Their leading eigenvalues `(batch, k, 1)`.
        vectors: The eigenvectors in rows, `(batch, k, n)`.
        right: Rows `r`, `(batch, k, n)`.
        start: First guess of `z`, `(batch, k, n)`; its part along `vectors`
            stays.
        tolerance: Differences of eigenvalues below are round-off, `(batch, 1,
            1)`.

    Returns:
        Rows `z`, `(batch, k, n)`.
    """

    def apply(rows):
        return values * rows - tf.matmul(rows, gram)

    def project(rows):
        inside = tf.matmul(rows, vectors, transpose_b=True)
        return rows - tf.matmul(inside, vectors)

    residual = project(right - apply(start))
    # Rows are left as they are once they are solved to round-off.
    solved = 1e-14 * _squares(right)
    solution, direction, size = start, residual, _squares(residual)
    for _ in range(_SOLVER_STEPS):
        image = apply(direction)
        curvature = tf.reduce_sum(direction * image, 2, keepdims=True)
        live = (size > solved) & (curvature > tolerance * _squares(direction))
        step = tf.where(live, tf.math.divide_no_nan(size, curvature), 0)
        solution += step * direction
        # Projected anew: what round-off leaves along the leading vectors has
        # no curvature, and steps along it would be huge.
        residual = project(residual - step * image)
        before, size = size, _squares(residual)
        growth = tf.where(live, tf.math.divide_no_nan(size, before), 0)
        direction = residual + growth * direction
    return solution


def _leading_block(gram: tf.Tensor, size: int) -> tf.Tensor:
    """Spans the `size` leading eigenvectors by orthonormal rows, roughly."""
    start = np.random.default_rng(0).normal(size=(size, gram.shape[-1]))
    block = tf.zeros_like(gram[:, :size]) + tf.constant(start, gram.dtype)
    bound = tf.zeros_like(gram[:, :1, :1])
    for steps in _STEPS:
        block = _filter(gram, block, bound, steps)
        image = tf.matmul(block, gram)
        bound = tf.reduce_sum(image * block, 2, keepdims=True)
        bound = tf.maximum(tf.reduce_min(bound, 1, keepdims=True), 0)
    # Twice again for what the first time left. Rows in excess of the rank are
    # short, and remains of other rows: without them, those count once.
    for _ in range(2):
        block = _orthonormal(block, block)
    squares = _squares(block)
    return tf.where(squares > 0.5, block * tf.math.rsqrt(squares), 0)


def _filter(
    gram: tf.Tensor, block: tf.Tensor, bound: tf.Tensor, steps: int
) -> tf.Tensor:
    """Applies a Chebyshev polynomial that is small from 0 to `bound`.

    Of the second kind and degree `steps`, as a recurrence that at a bound of
    0 gives the powers of the matrix.
    """
    centre, square = bound / 2, bound**2 / 16

    def step(count, block, previous):
        image = tf.matmul(block, gram) - centre * block - square * previous
        both = _orthonormal(image, tf.concat([image, block], axis=2))
        return count + 1, *tf.split(both, 2, axis=2)

    _, block, _ = tf.while_loop(
        lambda count, *_: count < steps,
        step,
        (0, block, tf.zeros_like(block)),
        maximum_iterations=steps,
    )
    return block


def _orthonormal(block: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Combines `rows` in the way that makes those of `block` orthonormal."""
    _, size, n = block.shape
    jitters = np.full(size, _JITTER + _JITTER_PER_TERM * n)
    jitters[0] = _FIRST_JITTER
    inner = tf.matmul(block, block, transpose_b=True)
    inner *= tf.constant(1 + np.diag(jitters), inner.dtype)
    inner += tf.constant(_TINY * np.eye(size), inner.dtype)
    return tf.linalg.triangular_solve(tf.linalg.cholesky(inner), rows)


def _squares(rows: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(rows**2, axis=2, keepdims=True)
