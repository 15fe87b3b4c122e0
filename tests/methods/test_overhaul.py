import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import FeatureExtractor, Features, Taught
from keras_mhgd.methods.overhaul import (
    Overhaul,
    margins_from_batch_norm,
    overhaul_loss,
)


def features(maps):
    return Features(None, maps, maps_before_activation=maps)


def built(method, student, teacher):
    method.build(
        *(
            features([(None, *each.shape[1:]) for each in of.maps])
            for of in (student, teacher)
        )
    )
    return method


def run(method, student, teacher):
    weights = [weight.value for weight in method.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(student.maps)
        loss = method.call(student, teacher, None)["overhaul"]
    return loss, *tape.gradient(loss, [student.maps, weights])


def test_published_numbers(golden, close):
    stored = golden("mdist_ofd")
    student, teacher = (
        features([tf.constant(stored[f"in/{of}{i}"]) for i in range(2)])
        for of in ("student", "teacher")
    )
    method = built(Overhaul(weight=1.0), student, teacher)
    names = [
        f"connector{i}/{part}"
        for i in range(2)
        for part in ("0/kernel", "1/gamma", "1/beta")
    ]
    variables = method.trainable_variables
    for variable, name in zip(variables, names, strict=True):
        variable.assign(stored[f"var/{name}"].reshape(variable.shape))
    for i, margin in enumerate(method.margins):
        margin.assign(stored[f"margin{i}"])
        mapped = method.connectors[i](student.maps[i])
        close(mapped, stored[f"mid/connected{i}"], 1e-4)
        alone = overhaul_loss([mapped], [teacher.maps[i]], [margin])
        expected = float(stored[f"feat_loss{i}"])
        assert float(alone) == pytest.approx(expected, rel=1e-4)
    loss, of_maps, of_weights = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    for point, gradient in enumerate(of_maps):
        close(gradient, stored[f"grad/student{point}"], 1e-3)
    for gradient, name in zip(of_weights, names, strict=True):
        expected = stored[f"grad/var/{name}"].reshape(gradient.shape)
        close(gradient, expected, 1e-3)


def test_published_margins(golden):
    stored = golden("mdist_ofd")
    for i in range(2):
        found = margins_from_batch_norm(
            stored[f"teacher_bn{i}/gamma"], stored[f"teacher_bn{i}/beta"]
        )
        np.testing.assert_allclose(found, stored[f"margin{i}"], rtol=1e-4)


def test_hand_values_of_margins():
    """Half a normal distribution has mean sqrt(2 / pi) deviations.

    Four deviations above zero it is negative too rarely. Without deviation
    there is one value.
    """
    gamma = np.array([2.0, -2.0, 1.5, 0.0, 0.0, 0.0])
    beta = np.array([0.0, 0.0, 6.0, -2.0, 0.0, 1.0])
    half = -2 * np.sqrt(2 / np.pi)
    found = margins_from_batch_norm(gamma, beta)
    assert found.dtype == tf.float64
    np.testing.assert_allclose(found, [half, half, -4.5, -2, 0, 0], atol=1e-12)


def test_closed_form_is_the_mean_of_normal_responses():
    rng = np.random.default_rng(0)
    gamma, beta = [0.5, -1.0, 2.0], [0.5, -1.0, 1.0]
    responses = rng.normal(size=(400_000, 3)) * gamma + beta
    expected = [x[x < 0].mean() for x in responses.T]
    found = margins_from_batch_norm(gamma, beta)
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_hand_value():
    """Margin -1, so the targets are -1, -1, -1/4, -1/4, 1.

    2^2 above the margin; nothing below it; nothing below -1/4, both
    inactive; (1/4)^2 above; 3^2 where the teacher is active.
    """
    student = [[1.0, -2.0, -0.5, 0.0, -2.0]]
    teacher = [[-3.0, -3.0, -0.25, -0.25, 1.0]]
    margin = [-1.0] * 5
    found = overhaul_loss([student], [teacher], [margin])
    assert float(found) == 13.0625
    # The point before counts half; the mean over samples.
    twice = tf.repeat([student, teacher], 2, axis=1)
    found = overhaul_loss([twice[0]] * 2, [twice[1]] * 2, [margin] * 2)
    assert float(found) == 1.5 * 13.0625


def test_a_channel_without_negative_responses():
    """Margin 0 makes a target 0: nothing below it, 2^2 above."""
    assert float(overhaul_loss([[[-1.0]]], [[[-3.0]]], [[0.0]])) == 0
    assert float(overhaul_loss([[[2.0]]], [[[-3.0]]], [[0.0]])) == 4


def test_nan_stays_nan():
    assert np.isnan(overhaul_loss([[[np.nan]]], [[[-3.0]]], [[-1.0]]))


def test_positions_are_pooled_before_the_margin():
    """Mean of -4 and 2 is -1, above the margin of -2: (1 + 1)^2.

    Student 3 and -1 have mean 1.
    """
    student = tf.reshape([3.0, -1.0], (1, 2, 1))
    teacher = tf.reshape([-4.0, 2.0], (1, 2, 1))
    for pair in ([[1.0]], teacher), (student, [[-1.0]]):
        assert float(overhaul_loss([pair[0]], [pair[1]], [[-2.0]])) == 4


@pytest.mark.parametrize("shape", [(3, 2, 2, 4), (3, 5, 4), (3, 4)])
def test_gradient_is_that_of_finite_differences(shape):
    rng = np.random.default_rng(0)
    student, teacher, direction = rng.normal(size=(3, *shape))
    margin = -rng.uniform(size=4)

    def loss(step):
        return overhaul_loss([student + step * direction], [teacher], [margin])

    step = tf.constant(0.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(step)
        found = loss(step)
    assert found.dtype == tf.float64
    expected = (loss(1e-6) - loss(-1e-6)) / 2e-6
    np.testing.assert_allclose(tape.gradient(found, step), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [0.0, 1.0, None])
@pytest.mark.parametrize("batch", [1, 3])
def test_loss_and_gradient_stay_finite(dtype, value, batch):
    def draw(*shape):
        numbers = tf.random.normal((batch, *shape))
        return tf.cast(numbers if value is None else 0 * numbers + value, dtype)

    student = features([draw(4, 4, 3), draw(3, 2), draw(5)])
    teacher = features([draw(2, 3, 5), draw(3, 4), draw(5)])
    method = built(Overhaul(), student, teacher)
    loss, of_maps, of_weights = run(method, student, teacher)
    assert loss.shape == ()
    assert loss.dtype == tf.float32
    for map_, gradient in zip(student.maps, of_maps, strict=True):
        assert gradient.dtype == map_.dtype
    for gradient in of_maps + of_weights:
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


def test_teacher_is_a_constant_and_compiled_is_eager():
    student = features([tf.random.normal((3, 4, 4, 2))])
    teacher = features([tf.random.normal((3, 2, 2, 5))])
    method = built(Overhaul(), student, teacher)
    method.margins[0].assign([-1.0, -0.5, 0.0, -2.0, -0.1])
    with tf.GradientTape() as tape:
        tape.watch(teacher.maps)
        loss, *_ = run(method, student, teacher)
    assert tape.gradient(loss, teacher.maps) == [None]

    signature = [tf.TensorSpec((None, *x.shape[1:])) for x in student.maps]

    @tf.function(input_signature=signature)
    def in_graph(maps):
        return method.call(features([maps]), teacher, None)

    @tf.function(jit_compile=True)
    def under_xla(maps):
        return method.call(features([maps]), teacher, None)

    for compiled in (in_graph, under_xla):
        found = compiled(*student.maps)["overhaul"]
        np.testing.assert_allclose(found, loss, rtol=1e-5)


@pytest.mark.parametrize("taught", [False, True])
def test_margins_are_measured(taught):
    """Channels that are never negative have margin 0."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 3, 3, 4)).astype("float32") + [0, 1, -9, 9]
    expected = [[c[c < 0].mean() for c in x.T[:3]] + [0], [-2.0]]
    vector = -2 * tf.ones((10, 1), "bfloat16")
    labels = tf.zeros(10)

    def teacher(images):
        assert not taught
        return Features(None, [], maps_before_activation=[images, vector])

    shapes = features([tf.constant(x), vector])
    method = built(Overhaul(), shapes, shapes)
    assert not method.preparation.done
    for margin in method.margins:
        margin.assign(tf.fill(margin.shape, 5.0))
    kept = {
        "outputs": labels,
        "maps": (),
        "maps_before_activation": (tf.constant(x, tf.float32), vector),
    }
    images = Taught(tf.zeros((10, 1)), kept) if taught else x
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    method.preparation.run(
        teacher, None, x=data.batch(4), shuffle=False, verbose=0
    )
    assert method.preparation.done
    for margin, mean in zip(method.margins, expected, strict=True):
        np.testing.assert_allclose(margin, mean, rtol=1e-5)


def test_only_what_is_read_of_the_teacher_is_kept():
    found = Features(0, [1], maps_before_activation=[2])
    kept = Overhaul().targets(found)
    assert kept == Features(0, [], maps_before_activation=[2])


def test_config_round_trip():
    method = Overhaul(weight=0.5)
    config = keras.saving.serialize_keras_object(method)
    found = keras.saving.deserialize_keras_object(config)
    assert found.weight == 0.5
    assert keras.saving.serialize_keras_object(found) == config
    assert not any("preparation" in name for name in method.get_config())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`weight` must be 0 or more.*-1"):
        Overhaul(weight=-1)
    pair = features([tf.zeros((1, 2, 2, 3))]), features([tf.zeros((1, 4, 3))])
    with pytest.raises(ValueError, match="must both be `maps .*Choose other"):
        built(Overhaul(), *pair)


@pytest.mark.slow
def test_measures_once_trains_and_saves(distiller, small_net, images, tmp_path):
    teacher = small_net("teacher", widths=(6, 9))
    model = distiller(Overhaul(), teacher=teacher)
    (method,) = model.methods
    history = model.fit(*images, batch_size=8, epochs=3, verbose=0).history
    assert history["overhaul"][-1] < history["overhaul"][0]
    read = FeatureExtractor(teacher, ["stage1", "stage2"], method.needs.fields)
    for margin, found in zip(
        method.margins, read(images[0]).maps_before_activation, strict=True
    ):
        channels = found.numpy().reshape(-1, found.shape[-1]).T
        expected = [c[c < 0].mean() if (c < 0).any() else 0 for c in channels]
        assert min(expected) < 0
        np.testing.assert_allclose(margin, expected, rtol=1e-4, atol=1e-6)
    marked = np.linspace(-2, -1, 9)
    method.margins[1].assign(marked)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    loaded.fit(*images, batch_size=8, verbose=0)
    np.testing.assert_allclose(loaded.methods[0].margins[1], marked, rtol=1e-6)
