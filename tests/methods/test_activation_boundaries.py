import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import FeatureExtractor, Features
from keras_mhgd.methods.activation_boundaries import (
    ActivationBoundaries,
    activation_boundary_loss,
)

HEAD = "criterion_alternative_L2/Map/connector"


def features(maps):
    return Features(None, maps, maps_before_activation=maps)


def stored_features(stored, of, points):
    return features([tf.constant(stored[f"in/{of}{i}"]) for i in range(points)])


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
        loss = method.call(student, teacher, None)["activation_boundaries"]
    return loss, *tape.gradient(loss, [student.maps, weights])


def test_published_numbers_with_connectors(golden, close):
    stored = golden("tf_ab")
    student, teacher = (
        stored_features(stored, of, 2) for of in ("student", "teacher")
    )
    method = built(ActivationBoundaries(unit_point="first"), student, teacher)
    names = [
        f"{HEAD}{part}"
        for i in range(2)
        for part in (f"{i}/weights", f"_bn{i}/gamma", f"_bn{i}/beta")
    ]
    variables = method.trainable_variables
    for variable, name in zip(variables, names, strict=True):
        variable.assign(stored[f"var/{name}"].reshape(variable.shape))
    loss, of_maps, of_weights = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    for point, gradient in enumerate(of_maps):
        close(gradient, stored[f"grad/student{point}"], 1e-3)
    for gradient, name in zip(of_weights, names, strict=True):
        expected = stored[f"grad/var/{name}"].reshape(gradient.shape)
        close(gradient, expected, 1e-3)


def test_published_numbers_at_equal_widths(golden, close):
    stored = golden("repd_ab_hint")
    student, teacher = (
        stored_features(stored, of, 3) for of in ("student", "teacher")
    )
    method = built(ActivationBoundaries(), student, teacher)
    assert method.trainable_variables == []
    loss, of_maps, _ = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["ab/loss"]), rel=1e-4)
    for point, gradient in enumerate(of_maps):
        close(gradient, stored[f"ab/grad/student{point}"], 1e-3)
        pair = [student.maps[point]], [teacher.maps[point]]
        alone = 3e-3 * 2.0 ** (point - 2) * activation_boundary_loss(*pair)
        expected = float(stored[f"ab/loss{point}"])
        assert float(alone) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("margin", "expected"), [(1.0, 4.25), (2.0, 14.25)])
def test_hand_value(margin, expected):
    """Right sides of the first sample: + + - -, zero counts as inactive.

    Margin 1: 3/2 is missing at -1/2 and at 1/2, 2 and -3 are far enough:
    9/2. Second sample, all zero: 4. Mean 17/4.
    Margin 2: 5/2 is missing twice, 0 at 2: 25/2; 4 x 4 = 16. Mean 57/4.
    """
    student = [[-0.5, 2.0, 0.5, -3.0], [0.0] * 4]
    teacher = [[1.0, 1.0, -1.0, 0.0], [1.0] * 4]
    found = activation_boundary_loss([student], [teacher], margin)
    assert float(found) == pytest.approx(expected)
    pair = features([tf.constant(student)]), features([tf.constant(teacher)])
    method = built(ActivationBoundaries(margin=margin, weight=2.0), *pair)
    assert float(run(method, *pair)[0]) == pytest.approx(2 * expected)


@pytest.mark.parametrize(
    ("unit_point", "expected"), [("last", 1.75), ("first", 7.0)]
)
def test_weight_doubles_from_point_to_point(unit_point, expected):
    """Each point alone has loss 1: 1/4 + 1/2 + 1 or 1 + 2 + 4."""
    maps = [tf.zeros((2, 1, 1, 1)), tf.zeros((2, 1, 1)), tf.zeros((2, 1))]
    found = activation_boundary_loss(maps, maps, unit_point=unit_point)
    assert float(found) == expected


def test_positions_are_pooled_to_the_smaller_size():
    """Positions 3 and -1 have mean 1: nothing is missing; 1/2 from 1/2."""
    student = tf.reshape([3.0, -1.0], (1, 2, 1))
    assert float(activation_boundary_loss([student], [[[0.1]]])) == 0
    student, teacher = [[[0.5]]], tf.reshape([-1.0, 1.5], (1, 2, 1))
    assert float(activation_boundary_loss([student], [teacher])) == 0.25


def test_nan_stays_nan():
    assert np.isnan(activation_boundary_loss([[[np.nan]]], [[[1.0]]]))


@pytest.mark.parametrize("shape", [(3, 2, 2, 3), (3, 4, 3), (3, 5)])
def test_gradient_is_that_of_finite_differences(shape):
    rng = np.random.default_rng(0)
    student, teacher, direction = rng.normal(size=(3, *shape))

    def loss(step):
        return activation_boundary_loss([student + step * direction], [teacher])

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
    teacher = features([draw(2, 3, 5), draw(3, 4), draw(6)])
    method = built(ActivationBoundaries(), student, teacher)
    loss, of_maps, of_weights = run(method, student, teacher)
    assert loss.shape == ()
    assert loss.dtype == tf.float32
    assert float(loss) > 0
    for map_, gradient in zip(student.maps, of_maps, strict=True):
        assert gradient.dtype == map_.dtype
    for gradient in of_maps + of_weights:
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


def test_teacher_is_a_constant_and_compiled_is_eager():
    student = features([tf.random.normal((3, 4, 4, 2))])
    teacher = features([tf.random.normal((3, 2, 2, 5))])
    method = built(ActivationBoundaries(), student, teacher)
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
        found = compiled(*student.maps)["activation_boundaries"]
        np.testing.assert_allclose(found, loss, rtol=1e-5)


def test_only_what_is_read_of_the_teacher_is_kept():
    found = Features(0, [1], maps_before_activation=[2])
    kept = ActivationBoundaries().targets(found)
    assert kept == Features(0, [], maps_before_activation=[2])


def test_config_round_trip():
    method = ActivationBoundaries(
        margin=0.5,
        unit_point="first",
        weight=2.0,
        preparation_epochs=3,
        preparation_learning_rate=0.1,
    )
    config = keras.saving.serialize_keras_object(method)
    found = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(found) == config
    assert (found.margin, found.unit_point, found.weight) == (0.5, "first", 2)
    assert found.terms == ()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`margin` must be positive.*=0.0"):
        ActivationBoundaries(margin=0.0)
    message = "`unit_point` must be one of first, last.*='lost'.*'last'"
    with pytest.raises(ValueError, match=message):
        ActivationBoundaries(unit_point="lost")
    with pytest.raises(ValueError, match=message):
        activation_boundary_loss([[0.0]], [[0.0]], unit_point="lost")
    pair = features([tf.zeros((1, 2, 2, 3))]), features([tf.zeros((1, 4, 3))])
    with pytest.raises(ValueError, match="must both be `maps .*Choose other"):
        built(ActivationBoundaries(), *pair)


@pytest.mark.parametrize("epochs", [0, 2])
def test_trains_beside_the_task_or_initialises(
    epochs, distiller, small_net, images
):
    method = ActivationBoundaries(
        preparation_epochs=epochs, preparation_learning_rate=0.05
    )
    teacher = small_net("teacher", widths=(6, 9))
    model = distiller(method, teacher=teacher)
    # One width differs: one connector. What initialises the student is fixed
    # but for that time.
    own = [layer.variables for layer in method.connectors]
    own = [variable for variables in own for variable in variables]
    assert len(own) == 3
    assert len(method.trainable_variables) == (0 if epochs else 3)

    def loss():
        points = ["stage1", "stage2"]
        found = (
            FeatureExtractor(network, points, method.needs.fields)(images[0])
            for network in (model.student, model.teacher)
        )
        (found,) = method.call(*found, None).values()
        return float(found)

    before, weights = loss(), [w.numpy() for w in own]
    if epochs:
        model.prepare(*images, batch_size=8, verbose=0)
        assert method.preparation.done
    else:
        history = model.fit(*images, batch_size=8, epochs=2, verbose=0).history
        assert len(history["activation_boundaries"]) == 2
    assert loss() < before
    for old, new in zip(weights, own, strict=True):
        assert np.any(old != new.numpy())
    if epochs:
        history = model.fit(*images, batch_size=8, verbose=0).history
        assert "activation_boundaries" not in history
