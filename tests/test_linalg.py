import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import linalg

CASES = ["hw_gt_d", "hw_lt_d", "hw_eq_d"]


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


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_maps_stay_finite(name, dtype):
    x = tf.cast(DEGENERATE[name], dtype)
    weights = np.random.default_rng(0).normal(size=(x.shape[2], 4))

    def loss(x):
        vectors = linalg.right_singular_vectors(x, 4)
        return tf.reduce_sum(tf.cast(vectors, tf.float64) * weights)

    value, gradient = with_gradient(loss, x)
    assert np.isfinite(value)
    gradient = tf.cast(gradient, tf.float64)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() < 1e4


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 1e15])
def test_vectors_do_not_depend_on_the_scale(scale):
    x = np.random.default_rng(0).normal(size=(2, 6, 4)).astype("float32")
    one = linalg.right_singular_vectors(x, 4)
    other = linalg.right_singular_vectors(x * np.float32(scale), 4)
    np.testing.assert_allclose(np.abs(one), np.abs(other), atol=1e-5)


def test_nan_spoils_its_own_sample_only():
    x = np.random.default_rng(0).normal(size=(3, 6, 4))
    x[1, 2, 3] = np.nan
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
            lambda: linalg.align(tf.zeros((2, 3, 4)), tf.zeros((2, 4))),
            r"with the same D. Received: \(2, 3, 4\) and \(2, 4\)",
        ),
    ],
)
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
