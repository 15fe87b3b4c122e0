import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features.compression import student_vector
from keras_mhgd.graph import MHAN, estimation_loss, kept_heads
from keras_mhgd.methods import graph_divergence

EDGES = (1, 2)


@pytest.fixture
def reference(golden):
    return golden("tf_mhgd")


@pytest.fixture
def mhan(reference):
    """An MHAN with the reference's weights."""
    sizes = [reference[f"mid/V_T{i}"].shape[1] for i in range(3)]
    model = MHAN(sizes, num_heads=8, weight_decay=5e-4)
    for variable, name in reference_names(model):
        variable.assign(reference[f"var/{name}"])
    return model


def reference_names(model):
    """Pairs our variables with the reference's names."""

    def of_norm(layer, name):
        return [
            (layer.gamma, f"{name}/gamma"),
            (layer.beta, f"{name}/beta"),
            (layer.moving_mean, f"{name}/moving_mean"),
            (layer.moving_variance, f"{name}/moving_variance"),
        ]

    pairs = []
    for edge in EDGES:
        heads, estimator = model.heads[edge - 1], model.estimators[edge - 1]
        attention, tail = f"MHA{edge}/Attention", f"MHA{edge}/Estimator"
        pairs += [
            (heads.theta.kernel, f"{attention}/Sfc/weights"),
            (heads.phi.kernel, f"{attention}/Rfc/weights"),
            (estimator.hidden.kernel, f"{tail}/fc0/weights"),
            (estimator.project.kernel, f"{tail}/fc1/weights"),
            (estimator.project.bias, f"{tail}/fc1/biases"),
            *of_norm(heads.theta_norm, f"{attention}/Sbn"),
            *of_norm(heads.phi_norm, f"{attention}/Rbn"),
            *of_norm(estimator.hidden_norm, f"{tail}/bn0"),
        ]
    return pairs


def vectors(reference, which):
    return [
        tf.constant(reference[f"mid/V_{which}{i}"][:, :, 0]) for i in range(3)
    ]


def test_logits_with_batch_statistics(reference, mhan, close):
    logits = mhan(vectors(reference, "T"), training=True)
    for edge in EDGES:
        close(logits[edge - 1], reference[f"mid/G_T_train{edge}"], 1e-5)
        close(
            tf.nn.softmax(logits[edge - 1]),
            reference[f"mid/attention_softmax{edge}"],
            1e-4,
        )


def test_logits_with_moving_averages(reference, mhan, close):
    for which in "TS":
        logits = mhan(vectors(reference, which), training=False)
        for edge in EDGES:
            close(logits[edge - 1], reference[f"mid/G_{which}{edge}"], 1e-5)


def test_head_dropping(reference):
    for edge in EDGES:
        kept = kept_heads(tf.constant(reference[f"in/noise{edge}"][:, :, 0]))
        graph = reference[f"mid/attention_softmax{edge}"]
        np.testing.assert_array_equal(
            graph * kept[:, :, tf.newaxis],
            reference[f"mid/attention_dropped{edge}"],
        )


def test_estimates_loss_and_gradients(reference, mhan, close):
    noise = [tf.constant(reference[f"in/noise{e}"][:, :, 0]) for e in EDGES]
    teacher = vectors(reference, "T")
    with tf.GradientTape() as tape:
        estimates = mhan.estimate(teacher, noise)
        loss = estimation_loss(teacher, estimates)
    for edge in EDGES:
        close(estimates[edge - 1], reference[f"mid/estimator_out{edge}"], 1e-4)
    assert float(loss) == pytest.approx(reference["mha_loss"], rel=1e-5)
    names = {variable.path: name for variable, name in reference_names(mhan)}
    gradients = tape.gradient(loss, mhan.trainable_variables)
    for variable, gradient in zip(
        mhan.trainable_variables, gradients, strict=True
    ):
        expected = reference[f"grad_mha/var/{names[variable.path]}"]
        if "Rbn/beta" in names[variable.path]:
            # Zero by the softmax's invariance: round-off alone is stored.
            np.testing.assert_allclose(gradient, 0, atol=1e-6)
        else:
            close(gradient, expected, 1e-3)


def test_moving_averages_after_one_update(reference, mhan, close):
    before = {
        name: variable.numpy() for variable, name in reference_names(mhan)
    }
    mhan.estimate(vectors(reference, "T"))
    for variable, name in reference_names(mhan):
        if "moving" not in name:
            continue
        added = variable.numpy() - 0.9 * before[name]
        expected = reference[f"var_after_update/{name}"] - 0.9 * before[name]
        if name.endswith("variance"):
            # The reference feeds the unbiased variance, Keras the biased one.
            expected *= 7 / 8
        np.testing.assert_allclose(added, expected, rtol=1e-3, atol=1e-5)


def test_transfer_loss_and_its_gradient(reference, mhan, close):
    student = [tf.Variable(v) for v in vectors(reference, "S")]
    with tf.GradientTape() as tape:
        students = mhan.edges(student)
        teachers = mhan.edges(vectors(reference, "T"))
        loss = graph_divergence(students, teachers)
    for edge in EDGES:
        edge_loss = graph_divergence(
            students[edge - 1 : edge], teachers[edge - 1 : edge]
        )
        expected = reference[f"edge_loss{edge}"]
        assert float(edge_loss) == pytest.approx(expected, rel=1e-4)
    assert float(loss) == pytest.approx(reference["loss"], rel=1e-4)
    for i, gradient in enumerate(tape.gradient(loss, student)):
        close(gradient, reference[f"grad/V_S{i}"][:, :, 0], 1e-3)


@pytest.mark.parametrize(
    ("gradient", "key"), [("exact", "grad_true"), ("published", "grad")]
)
def test_gradient_at_the_students_maps(reference, mhan, close, gradient, key):
    maps = [tf.Variable(reference[f"in/student{i}"]) for i in range(3)]
    teacher = vectors(reference, "T")
    with tf.GradientTape() as tape:
        student = [
            student_vector(feature, vector, gradient)
            for feature, vector in zip(maps, teacher, strict=True)
        ]
        loss = graph_divergence(mhan.edges(student), mhan.edges(teacher))
    assert float(loss) == pytest.approx(reference["loss"], rel=1e-4)
    for i, gradient in enumerate(tape.gradient(loss, maps)):
        close(gradient, reference[f"{key}/student{i}"], 1e-3)


def test_weight_decay_is_the_published_one(mhan):
    """Gradient 2 * 5e-4 * v of every weight, scale and offset."""
    with tf.GradientTape() as tape:
        loss = sum(mhan.losses)
    gradients = tape.gradient(loss, mhan.trainable_variables)
    for variable, gradient in zip(
        mhan.trainable_variables, gradients, strict=True
    ):
        np.testing.assert_allclose(
            gradient, 1e-3 * variable.numpy(), rtol=1e-5, atol=1e-9
        )


def test_permuting_a_batch_permutes_the_graph(reference, mhan):
    order = np.random.default_rng(0).permutation(8)
    teacher = vectors(reference, "T")
    plain = mhan(teacher)
    permuted = mhan([tf.gather(v, order) for v in teacher])
    for a, b in zip(plain, permuted, strict=True):
        np.testing.assert_allclose(
            a.numpy()[:, order][:, :, order], b, rtol=1e-4, atol=1e-4
        )


def test_scaled_logits(reference):
    keras.utils.set_random_seed(3)
    teacher = vectors(reference, "T")
    sizes = [v.shape[1] for v in teacher]
    plain = MHAN(sizes, num_heads=2)
    scaled = MHAN(sizes, num_heads=2, scale_logits=True)
    scaled.set_weights(plain.get_weights())
    widths = [heads.head_size for heads in plain.heads]
    for a, b, width in zip(
        plain(teacher), scaled(teacher), widths, strict=True
    ):
        np.testing.assert_allclose(a, b * width**0.5, rtol=1e-5, atol=1e-6)


def test_heads_have_a_largest_width():
    """The default bound leaves the published networks as they are."""
    sizes = [128, 256, 728, 1024, 2048]  # of Xception
    for bound, expected in (
        (None, [192, 492, 876, 1536]),
        (512, [192, 492, 512, 512]),
        (64, [64] * 4),
    ):
        mhan = MHAN(sizes, num_heads=2, max_head_size=bound)
        assert [heads.head_size for heads in mhan.heads] == expected
        again = MHAN.from_config(mhan.get_config())
        assert [heads.head_size for heads in again.heads] == expected
    assert MHAN([64, 128]).max_head_size == 512
    old = MHAN(sizes, num_heads=2).get_config()
    del old["max_head_size"]  # as saved by earlier versions
    assert MHAN.from_config(old).max_head_size is None
    with pytest.raises(ValueError, match="max_head_size"):
        MHAN(sizes, max_head_size=0)


def test_a_single_head_is_never_dropped():
    np.testing.assert_array_equal(kept_heads(tf.zeros((1, 4))), [[1] * 4])


def test_saves_and_loads(reference, mhan, tmp_path):
    path = tmp_path / "mhan.keras"
    mhan.save(path)
    loaded = keras.saving.load_model(path)
    assert loaded.get_config() == mhan.get_config()
    teacher = vectors(reference, "T")
    for a, b in zip(mhan(teacher), loaded(teacher), strict=True):
        np.testing.assert_array_equal(a, b)


def test_computes_in_float32_under_any_policy():
    keras.config.set_dtype_policy("mixed_bfloat16")
    mhan = MHAN([4, 6], num_heads=2)
    logits = mhan([tf.ones((3, 4)), tf.ones((3, 6))])[0]
    assert logits.dtype == tf.float32
    assert {v.dtype for v in mhan.trainable_variables} == {"float32"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [4]}, r"two or more sensing points. Received: sizes=\[4\]"),
        ({"sizes": [4, 0]}, "two or more sensing points"),
        ({"sizes": [4, 4], "num_heads": 0}, "`num_heads` must be 1 or more"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MHAN(**arguments)
