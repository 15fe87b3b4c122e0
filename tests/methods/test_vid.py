import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.methods.vid import VID, variational_information_loss

DENSE_FORM = {"expansion": 2, "normalize": True, "min_variance": 1.0}


def features(*maps):
    return Features(None, [tf.convert_to_tensor(each) for each in maps])


def built(method, student, teacher):
    method.build(
        *(
            Features(None, [(None, *each.shape[1:]) for each in of.maps])
            for of in (student, teacher)
        )
    )
    return method


def run(method, student, teacher):
    """Loss, gradients to the student's maps and to each regressor's."""
    layers = [
        [
            *(layer.kernel.value for layer in regressor.dense),
            *(norm.gamma.value for norm in regressor.norms),
            *(norm.beta.value for norm in regressor.norms),
            regressor.alpha.value,
        ]
        for regressor in method.regressors
    ]
    with tf.GradientTape() as tape:
        tape.watch([student.maps, teacher.maps])
        loss = method.call(student, teacher, None)["vid"]
    found = tape.gradient(loss, [student.maps, layers, teacher.maps])
    assert found[2] == [None] * len(teacher.maps)
    return loss, *found[:2]


def test_published_numbers_of_convolutions(golden, close):
    stored = golden("repd_vid")
    student = features(stored["in/student"])
    teacher = features(stored["in/teacher"])
    # 20 hidden channels for 16 of the teacher.
    method = built(VID(expansion=20 / 16), student, teacher)
    (regressor,) = method.regressors
    np.testing.assert_allclose(
        regressor.alpha, stored["log_scale_initial"], rtol=1e-5
    )
    keys = [f"vid/regressor/{index}/kernel" for index in (0, 2, 4)]
    for layer, key in zip(regressor.dense, keys, strict=True):
        layer.kernel.assign(stored[f"var/{key}"][0, 0])
    regressor.alpha.assign(stored["var/vid/log_scale"])
    loss, (of_student,), (of_weights,) = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    close(of_student, stored["grad/student"], 1e-3)
    for gradient, key in zip(of_weights, keys, strict=False):
        close(gradient, stored[f"grad/var/{key}"][0, 0], 1e-3)
    close(of_weights[-1], stored["grad/var/vid/log_scale"], 1e-3)


def test_published_numbers_with_batch_normalisation(golden, close):
    stored = golden("tf_vid")
    student, teacher = (
        features(*(stored[f"in/{of}{point}"] for point in (0, 1)))
        for of in ("student", "teacher")
    )
    method = built(VID(**DENSE_FORM), student, teacher)
    keys = [
        [
            f"VID/vid{point}/{name}"
            for name in [
                *(f"fc{layer}/weights" for layer in range(3)),
                *(f"bn{layer}/gamma" for layer in range(3)),
                *(f"bn{layer}/beta" for layer in range(3)),
                "alpha",
            ]
        ]
        for point in (0, 1)
    ]
    for regressor, names in zip(method.regressors, keys, strict=True):
        variables = [
            *(layer.kernel for layer in regressor.dense),
            *(norm.gamma for norm in regressor.norms),
            *(norm.beta for norm in regressor.norms),
            regressor.alpha,
        ]
        for variable, name in zip(variables, names, strict=True):
            variable.assign(np.reshape(stored[f"var/{name}"], variable.shape))
    loss, of_student, of_weights = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    for point, gradient in enumerate(of_student):
        close(gradient, stored[f"grad/student{point}"], 1e-3)
    for gradients, names in zip(of_weights, keys, strict=True):
        for gradient, name in zip(gradients, names, strict=True):
            expected = np.reshape(stored[f"grad/var/{name}"], gradient.shape)
            close(gradient, expected, 1e-3)


def test_hand_value():
    """Errors 1 and 2 with variances 1 and 4; at a second point 0 with e.

    (log 1 + 1/1) / 2 = 1/2 and (log 4 + 4/4) / 2 = log 2 + 1/2, in the mean
    (1 + log 2) / 2; and (log e + 0) / 2 = 1/2.
    """
    found = variational_information_loss(
        [[[1.0, 2.0]], [[3.0]]], [[[0.0, 0.0]], [[3.0]]], [[1, 4], [np.e]]
    )
    expected = (1 + np.log(2)) / 2 + 0.5
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_hand_value_of_the_regressor():
    """Two channels of ones through kernels of 1/2, three hidden channels.

    1, then 3/2, then 9/4 against 1/4: error 4. With alpha = 0 the variance is
    log 2 and 1e-5; the teacher's vector stands for each of four positions.
    """
    student = features(tf.ones((2, 2, 2, 2)))
    teacher = features(tf.fill((2, 3), 0.25))
    method = built(VID(weight=3.0), student, teacher)
    for variable in method.trainable_variables:
        variable.assign(tf.fill(variable.shape, 0.5))
    method.regressors[0].alpha.assign(np.zeros(3))
    variance = np.log(2) + 1e-5
    expected = 3 * (np.log(variance) + 4 / variance) / 2
    assert float(run(method, student, teacher)[0]) == pytest.approx(
        expected, rel=1e-5
    )


def test_best_variance_is_the_mean_squared_error():
    """d/dv (log v + e / v) = 0 at v = e."""
    rng = np.random.default_rng(0)
    mean, teacher = rng.normal(size=(2, 6, 4, 3))
    error = np.mean((mean - teacher) ** 2, axis=(0, 1))
    losses = [
        float(variational_information_loss([mean], [teacher], [error * scale]))
        for scale in (1.0, 0.9, 1.1)
    ]
    assert losses[0] < min(losses[1:])


def test_gradient_against_finite_differences():
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(2, 3, 2)),
        rng.uniform(0.5, 2.0, size=2),
    ]
    teacher = tf.constant(rng.normal(size=(2, 3, 2)))

    def loss(mean, variance):
        return variational_information_loss([mean], [teacher], [variance])

    tensors = [tf.constant(each) for each in arrays]
    with tf.GradientTape() as tape:
        tape.watch([tensors, teacher])
        value = loss(*tensors)
    assert value.dtype == tf.float64
    *found, of_teacher = tape.gradient(value, [*tensors, teacher])
    assert of_teacher is None
    for which, array in enumerate(arrays):
        numeric, step = np.zeros_like(array), 1e-6
        for index in np.ndindex(*array.shape):
            moved = [[each.copy() for each in arrays] for _ in range(2)]
            moved[0][which][index] += step
            moved[1][which][index] -= step
            numeric[index] = (loss(*moved[0]) - loss(*moved[1])) / (2 * step)
        np.testing.assert_allclose(found[which], numeric, atol=1e-8)


def draw(seed, *shape, dtype="float32"):
    return tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)


DEGENERATE = {
    "zero": (tf.zeros((3, 4, 4, 2)), tf.zeros((3, 4, 4, 5))),
    "constant": (tf.ones((3, 4, 4, 2)), draw(1, 3, 4, 4, 5)),
    "one sample": (draw(0, 1, 4), draw(1, 1, 5)),
    "sequences": (draw(0, 3, 7, 4), draw(1, 3, 5, 4)),
    "float16": (
        draw(0, 3, 4, 4, 2, dtype="float16"),
        draw(1, 3, 2, 3, 5, dtype="float16"),
    ),
    "bfloat16": (
        draw(0, 3, 4, 4, 2, dtype="bfloat16"),
        draw(1, 3, 6, 6, 5, dtype="bfloat16"),
    ),
}


@pytest.mark.parametrize("arguments", [{}, DENSE_FORM], ids=["", "dense"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_maps(name, arguments):
    student, teacher = (features(each) for each in DEGENERATE[name])
    method = built(VID(**arguments), student, teacher)
    loss, (of_student,), (of_weights,) = run(method, student, teacher)
    assert loss.dtype == tf.float32 and loss.shape == ()
    assert of_student.dtype == student.maps[0].dtype
    for each in (loss, of_student, *of_weights):
        assert np.isfinite(tf.cast(each, tf.float32)).all()


def test_learns_what_the_student_tells_of_the_teacher():
    """A teacher's channel that depends on the student, and one of noise."""
    keras.utils.set_random_seed(0)
    student = features(draw(0, 64, 2, 2, 4))
    told = tf.reduce_sum(student.maps[0], axis=-1, keepdims=True)
    teacher = features(tf.concat([told, draw(1, 64, 2, 2, 1)], axis=-1))
    method = built(VID(expansion=4), student, teacher)
    optimizer = keras.optimizers.Adam(0.03)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = method.call(student, teacher, None)["vid"]
        variables = method.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    optimizer.build(method.trainable_variables)
    losses = [float(step()) for _ in range(200)]
    assert losses[-1] < losses[0] - 0.5
    _, variances = method.regressors[0](student.maps[0][:, 0])
    assert variances[0] < 0.3 < 0.5 < variances[1]


def test_unknown_batch_under_xla():
    student, teacher = (features(draw(i, 3, 4, 4, 2)) for i in (0, 1))
    method = built(VID(**DENSE_FORM), student, teacher)
    compiled = tf.function(
        lambda s, t: method.call(features(s), features(t), None)["vid"],
        input_signature=[tf.TensorSpec((None, 4, 4, 2))] * 2,
        jit_compile=True,
    )
    np.testing.assert_allclose(
        compiled(student.maps[0], teacher.maps[0]),
        run(method, student, teacher)[0],
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["expansion", "min_variance"])
def test_wrong_arguments(name):
    with pytest.raises(ValueError, match=f"`{name}` must be positive.*=0"):
        VID(**{name: 0})


def test_refuses_a_map_beside_a_sequence():
    with pytest.raises(ValueError, match="both be `maps .*Received: shapes"):
        built(
            VID(),
            features(draw(0, 2, 3, 3, 4)),
            features(draw(0, 2, 3, 4)),
        )


def test_config_round_trip():
    arguments = {**DENSE_FORM, "weight": 0.5, "name": "mine"}
    config = VID(**arguments).get_config()
    found = VID.from_config(config)
    assert {key: getattr(found, key) for key in arguments} == arguments
    assert found.get_config() == config


@pytest.mark.slow
def test_trains_saves_and_loads(distiller, images, tmp_path):
    x, y = images
    model = distiller(VID(**DENSE_FORM))
    history = model.fit(x, y, batch_size=16, epochs=2, verbose=0).history
    assert np.isfinite(history["vid"]).all()
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
