import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import linalg

CASES = ["hw_gt_d", "hw_lt_d", "hw_eq_d"]
SOLVERS = ["eigh", "subspace"]


def with_gradient(function, x):
    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return y, tape.gradient(y, x)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [1, 4])
def test_vectors_agree_with_the_reference(golden, close, case, k):
    data = golden("tf_svd")
    x = data[f"{case}/in/x"]
    vectors = linalg.right_singular_vectors(
        x.reshape(len(x), -1, x.shape[-1]), k
    ).numpy()
    expected = data[f"{case}/svd/n{k}/V"]
    vectors *= np.sign((vectors * expected).sum(1, keepdims=True))
    close(vectors, expected, 1e-5)


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (6, 6)])
def test_vectors_of_small_singular_values_keep_their_digits(shape, close):
    """Squared in float32 they would not: its round-off is 1e-7 of the first."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 6)))[0] for n in shape)
    values = np.array([1.0, 0.3, 0.1, 0.005, 0.0, 0.0])
    x = (left[:, :6] * values @ right[:, :6].T)[np.newaxis]
    expected = right[np.newaxis, :, :4]
    upstream = rng.normal(size=(1, shape[1], 4))

    def loss(x):
        vectors = linalg.right_singular_vectors(x, 4, "eigh")
        signs = tf.sign(tf.reduce_sum(vectors * expected, 1, keepdims=True))
        return vectors * signs, tf.reduce_sum(upstream * vectors * signs)

    found = []
    for dtype in ("float32", "float64"):
        vectors = []
        _, gradient = with_gradient(
            lambda x, vectors=vectors: vectors.append(loss(x)) or vectors[0][1],
            x.astype(dtype),
        )
        close(vectors[0][0], expected, 1e-4 if dtype == "float32" else 1e-9)
        found.append(gradient)
    close(*found, 1e-3)


@pytest.mark.parametrize("case", CASES)
def test_gradient_agrees_with_the_exact_one(golden, close, case):
    data = golden("tf_svd")
    x, expected = data[f"{case}/in/x"], data[f"{case}/svd/n4/V"]

    def loss(x):
        x = tf.reshape(x, (x.shape[0], -1, x.shape[-1]))
        vectors = linalg.right_singular_vectors(x, 4)
        signs = tf.sign(tf.reduce_sum(vectors * expected, 1, keepdims=True))
        return tf.reduce_sum(data[f"{case}/in/gV"] * vectors * signs)

    value, gradient = with_gradient(loss, x)
    assert float(value) == pytest.approx(data[f"{case}/svd/n4/L"], rel=1e-4)
    close(gradient, data[f"{case}/svd/n4/grad_true_V"], 1e-4)


@pytest.mark.parametrize("case", CASES)
def test_sign_free_gradient_agrees_with_the_exact_one(golden, close, case):
    data = golden("tf_svd")
    x = data[f"{case}/in/x"]

    def loss(x):
        x = tf.reshape(x, (x.shape[0], -1, x.shape[-1]))
        vectors = linalg.right_singular_vectors(x, 4)
        products = tf.reduce_sum(data[f"{case}/in/A"] * vectors, axis=1)
        return tf.reduce_sum(data[f"{case}/in/w"] * products**2)

    _, gradient = with_gradient(loss, x)
    close(gradient, data[f"{case}/grad_true_inv_n4"], 1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", ["hw_gt_d", "hw_lt_d"])
def test_published_gradient_agrees_with_the_reference(
    golden, close, case, solver
):
    data = golden("tf_svd")
    x = data[f"{case}/in/x"]

    def loss(x):
        x = tf.reshape(x, (x.shape[0], -1, x.shape[-1]))
        vectors = linalg.right_singular_vectors(x, 4, solver, "published")
        products = tf.reduce_sum(data[f"{case}/in/A"] * vectors, axis=1)
        return tf.reduce_sum(data[f"{case}/in/w"] * products**2)

    _, gradient = with_gradient(loss, x)
    close(gradient, data[f"{case}/eid/n4/grad_inv"], 2e-4)


def test_published_gradient_is_none_for_maps_that_are_nearly_square(golden):
    data = golden("tf_svd")
    assert data["hw_eq_d/eid/n4/grad_is_none"]
    x = tf.reshape(data["hw_eq_d/in/x"], (8, 16, 16))
    _, gradient = with_gradient(
        lambda x: linalg.right_singular_vectors(x, 4, gradient="published"), x
    )
    assert gradient is None
    # The bounds themselves are outside.
    for shape in ((2, 3), (3, 2)):
        x = np.random.default_rng(0).normal(size=(1, *shape))
        vectors, gradient = with_gradient(
            lambda x: linalg.right_singular_vectors(x, 1, gradient="published"),
            x,
        )
        assert gradient is not None


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    k=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_vectors_are_those_of_numpy(rows, columns, k, seed):
    x = np.random.default_rng(seed).normal(size=(2, rows, columns))
    vectors = linalg.right_singular_vectors(x, k).numpy()
    assert vectors.shape == (2, columns, k)
    _, _, expected = np.linalg.svd(x, full_matrices=False)
    rank = min(k, rows, columns)
    cosines = np.einsum("bdk,bkd->bk", vectors[:, :, :rank], expected[:, :rank])
    np.testing.assert_allclose(np.abs(cosines), 1, atol=1e-8)
    assert not vectors[:, :, rank:].any()


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 6), (3, 7), (7, 2)])
def test_gradient_agrees_with_finite_differences(shape):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, *shape))
    weights = rng.normal(size=(2, shape[1], 4))

    def loss(x):
        vectors = linalg.right_singular_vectors(x, 4)
        products = tf.reduce_sum(weights * vectors, axis=1)
        return tf.reduce_sum(products**2 * [1.0, 2.0, 3.0, 4.0])

    _, gradient = with_gradient(loss, x)
    numeric = np.zeros_like(x)
    step = 1e-6
    for index in np.ndindex(*x.shape):
        high, low = x.copy(), x.copy()
        high[index] += step
        low[index] -= step
        numeric[index] = (loss(high) - loss(low)) / (2 * step)
    np.testing.assert_allclose(gradient, numeric, atol=1e-7)


DEGENERATE = {
    "zero": np.zeros((2, 6, 4)),
    "zero, wide": np.zeros((2, 4, 6)),
    "rank one": np.ones((2, 6, 4)),
    "rank one, wide": np.ones((2, 4, 6)),
    "equal singular values": np.eye(6)[None],
    "equal singular values, wide": np.eye(4, 6)[None],
    "one row": np.linspace(-1, 1, 5).reshape(1, 1, 5),
    "one column": np.linspace(-1, 1, 5).reshape(1, 5, 1),
    "two rows": np.linspace(-1, 1, 12).reshape(1, 2, 6) ** 2,
    "half dead": np.linspace(-1, 1, 24).reshape(1, 6, 4) * [0, 1, 0, 1],
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_maps_stay_finite(name, dtype, solver):
    x = tf.cast(DEGENERATE[name], dtype)
    weights = np.random.default_rng(0).normal(size=(x.shape[2], 4))

    def loss(x):
        vectors = linalg.right_singular_vectors(x, 4, solver)
        return tf.reduce_sum(tf.cast(vectors, tf.float64) * weights)

    value, gradient = with_gradient(loss, x)
    assert np.isfinite(value)
    gradient = tf.cast(gradient, tf.float64)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e4


def maps(rows, columns, batch=4, seed=0):
    """Like those of a network: not negative, a spectrum that decays."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(batch, rows, 12))
    patterns = patterns @ rng.normal(size=(batch, 12, columns))
    noise = rng.normal(size=(batch, rows, columns))
    return np.maximum(patterns + noise + 1, 0).astype("float32")


@pytest.mark.parametrize("shape", [(256, 64), (40, 96), (64, 64), (33, 32)])
def test_iteration_is_exact_on_maps(shape):
    """Against float64 eigendecomposition: sines and gradient."""
    x = maps(*shape)
    weights = np.random.default_rng(1).normal(size=(len(x), shape[1], 4))

    def loss(x, solver):
        vectors = linalg.right_singular_vectors(x, 4, solver)
        products = tf.reduce_sum(weights.astype(x.dtype.name) * vectors, 1)
        return tf.reduce_sum(products**2 * [1, 2, 3, 4])

    _, expected = with_gradient(lambda x: loss(x, "eigh"), x.astype("float64"))
    _, found = with_gradient(lambda x: loss(x, "subspace"), x)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-3 * np.abs(expected).max()
    )
    vectors = linalg.right_singular_vectors(x, 4, "subspace").numpy()
    exact = np.linalg.svd(x.astype("float64"))[2][:, :4]
    cosines = np.einsum("bdk,bkd->bk", vectors, exact)
    residual = vectors - exact.swapaxes(1, 2) * cosines[:, None]
    assert np.linalg.norm(residual, axis=1).max() < 1e-4


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    "shape",
    [(49, 2048), (196, 1024), (784, 256), (197, 192), (3136, 64), (64, 128)],
)
def test_iteration_finds_nearly_the_singular_values_of_noise(
    shape, k, positive
):
    """Where directions are nearly equal, each that is found is worth as much.

    Against float64 eigenvalues of the smaller Gram matrix.
    """
    x = np.random.default_rng(3).normal(size=(4, *shape))
    x = (np.maximum(x, 0) if positive else x).astype("float32")
    vectors = linalg.right_singular_vectors(x, k, "subspace").numpy()
    vectors, x = vectors.astype("float64"), x.astype("float64")
    products = vectors.swapaxes(1, 2) @ vectors
    np.testing.assert_allclose(products - np.eye(k), 0, atol=1e-5)
    small = x if shape[0] < shape[1] else x.swapaxes(1, 2)
    exact = np.linalg.eigvalsh(small @ small.swapaxes(1, 2))[:, ::-1][:, :k]
    ratios = np.linalg.norm(x @ vectors, axis=1) / np.sqrt(exact)
    assert ratios.min() > 0.99
    assert ratios.max() < 1 + 1e-6


@pytest.mark.parametrize("rank", range(9))
@pytest.mark.parametrize("positive", [False, True])
def test_iteration_gives_as_many_vectors_as_the_rank(rank, positive):
    rng = np.random.default_rng(rank)
    left, right = rng.normal(size=(4, 49, rank)), rng.normal(size=(4, rank, 64))
    if positive:
        left, right = abs(left), abs(right)
    x = (left @ right).astype("float32")
    vectors, gradient = with_gradient(
        lambda x: linalg.right_singular_vectors(x, 4, "subspace"), x
    )
    products = vectors.numpy().swapaxes(1, 2) @ vectors.numpy()
    expected = np.diag(np.arange(4) < rank)
    np.testing.assert_allclose(products - expected, 0, atol=1e-4)
    values = np.linalg.norm(x @ vectors.numpy(), axis=1)
    exact = np.linalg.svd(x, compute_uv=False)[:, :4]
    largest = exact[:, :1] if rank else 1
    np.testing.assert_allclose(values / largest, exact / largest, atol=1e-3)
    assert np.isfinite(gradient).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(784, 16), (36, 64), (64, 40)])
def test_xla_agrees(shape):
    x = maps(*shape)
    weights = np.random.default_rng(1).normal(size=shape[1]).astype("float32")

    def run(x):
        return with_gradient(
            lambda x: (
                tf.einsum(
                    "bdk,d->bk", linalg.right_singular_vectors(x, 4), weights
                )
                ** 2
            ),
            x,
        )

    compiled = tf.function(run, jit_compile=True)(x)
    for found, expected in zip(compiled, run(x), strict=True):
        largest = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, atol=2e-3 * largest)


@pytest.mark.parametrize("shape", [(6, 4), (60, 40)])
@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e15])
def test_vectors_do_not_depend_on_the_scale(scale, shape):
    x = maps(*shape)
    one = linalg.right_singular_vectors(x, 3)
    other = linalg.right_singular_vectors(x * np.float32(scale), 3)
    np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 4), (60, 40)])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_spoils_its_own_sample_only(shape, wrong):
    x = maps(*shape)
    x[1, 2, 3] = wrong
    vectors = linalg.right_singular_vectors(x, 2).numpy()
    assert np.isnan(vectors[1]).all()
    assert np.isfinite(vectors[[0, 2]]).all()


def test_graph_with_unknown_shape_agrees_with_eager():
    x = np.random.default_rng(0).normal(size=(3, 4, 6)).astype("float32")
    function = tf.function(
        lambda x: linalg.right_singular_vectors(x, 5),
        input_signature=[tf.TensorSpec((None, None, 6))],
    )
    eager = linalg.right_singular_vectors(x, 5)
    np.testing.assert_allclose(np.abs(function(x)), np.abs(eager), atol=1e-4)


@pytest.mark.parametrize("case", ["a", "b"])
def test_alignment_agrees_with_the_reference(golden, case):
    data = golden("tf_align")
    x = data[f"in/x_{case}"]
    for count in (1, 2):
        y = data[f"in/y{count}_{case}"]

        def aligned(x, y=y, count=count):
            return tf.stack(
                [linalg.align(x, y[:, :, i]) for i in range(count)], axis=2
            )

        np.testing.assert_allclose(
            aligned(tf.constant(x)), data[f"{case}{count}/aligned"], atol=1e-6
        )
        _, gradient = with_gradient(
            lambda x, y=y, count=count, aligned=aligned: tf.reduce_sum(
                data[f"in/g{count}_{case}"] * aligned(x)
            ),
            x,
        )
        np.testing.assert_allclose(
            gradient, data[f"{case}{count}/grad_x"], atol=1e-6
        )


def test_alignment_of_a_zero_vector_is_zero():
    student = tf.zeros((2, 5, 4))
    teacher = tf.math.l2_normalize(tf.ones((2, 5)), axis=1)
    assert not np.any(linalg.align(student, teacher))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: linalg.right_singular_vectors(tf.zeros((2, 3)), 1),
            r"`x` must be a batch of matrices .* Received: x of shape \(2, 3\)",
        ),
        (
            lambda: linalg.right_singular_vectors(tf.zeros((2, 3, 4)), 0),
            "`k` must be 1 or more. Received: k=0",
        ),
        (
            lambda: linalg.right_singular_vectors(tf.zeros((2, 3, 4)), 1, "qr"),
            "`solver` must be one of eigh, subspace. .*'qr'",
        ),
        (
            lambda: linalg.right_singular_vectors(
                tf.zeros((2, 3, 4)), 1, gradient="publishd"
            ),
            "`gradient` must be one of exact, .*Did you mean 'published'",
        ),
        (
            tf.function(
                lambda x: linalg.right_singular_vectors(
                    x, 1, gradient="published"
                ),
                input_signature=[tf.TensorSpec((None, None, 4))],
            ).get_concrete_function,
            "`x` must have a static HW and D .* Take gradient='exact'",
        ),
        (
            tf.function(
                lambda x: linalg.right_singular_vectors(x, 1, "subspace"),
                input_signature=[tf.TensorSpec((None, 4, None))],
            ).get_concrete_function,
            "`x` must have a static D .* Take solver='eigh'",
        ),
        (
            lambda: linalg.align(tf.zeros((2, 3, 4)), tf.zeros((2, 4))),
            r"with the same D. Received: \(2, 3, 4\) and \(2, 4\)",
        ),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
