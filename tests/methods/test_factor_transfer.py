import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness.situations import SITUATIONS
from keras_mhgd.features import FeatureExtractor, Features, Taught
from keras_mhgd.methods.factor_transfer import (
    FactorTransfer,
    factor_transfer_loss,
)
from keras_mhgd.methods.pieces.paraphraser import (
    Paraphraser,
    ParaphraserTrainer,
)

FORMS = ("paraphraser", "pyramid")


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
    """Loss, gradients to the student's map and to the method's weights."""
    weights = [weight.value for weight in method.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch([student.maps, teacher.maps])
        loss = method.call(student, teacher, None)["factor_transfer"]
    of_student, of_weights, of_teacher = tape.gradient(
        loss, [student.maps[-1], weights, teacher.maps]
    )
    assert of_teacher == [None] * len(teacher.maps)
    return loss, of_student, of_weights


def draw(seed, *shape, dtype="float32"):
    return tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)


def assign(layer, stored, keys):
    names = [f"{key}/{kind}" for key in keys for kind in ("weights", "biases")]
    for variable, name in zip(layer.trainable_variables, names, strict=True):
        variable.assign(stored[f"var/{name}"])
    return names


# --- numbers


@pytest.mark.parametrize("given", [False, True])
def test_published_numbers_of_the_pyramid(given, golden, close):
    stored = golden("tf_ft")
    student = features(stored["in/student"])
    teacher = features(stored["in/teacher"])
    paraphraser = Paraphraser(24, pyramid=True) if given else None
    method = FactorTransfer("pyramid", paraphraser=paraphraser, weight=1.0)
    method = built(method, student, teacher)
    prefix = "Factor_Transfer/Factor_transfer"
    method.paraphraser.trainable = True
    assign(
        method.paraphraser.encoder,
        stored,
        [f"{prefix}/conv{index}" for index in range(3)],
    )
    method.paraphraser.trainable = False
    names = assign(
        method.translator,
        stored,
        [f"Factor_Transfer/Translator/conv{index}" for index in range(3)],
    )
    loss, of_student, of_weights = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    close(of_student, stored["grad/student"], 1e-3)
    for gradient, name in zip(of_weights, names, strict=True):
        close(gradient, stored[f"grad/var/{name}"], 1e-3)
    for layer, of, key in (
        (method.paraphraser, teacher, "mid/F_T"),
        (method.translator, student, "mid/F_S"),
    ):
        found = tf.math.l2_normalize(layer(of.maps[0]), axis=-1)
        close(found, stored[key], 1e-4)


def test_published_numbers_of_the_reconstruction(golden, close):
    stored = golden("tf_ft")
    maps = stored["in/teacher"]
    paraphraser = Paraphraser(24, pyramid=True)
    layers = [f"{kind}{i}" for kind in ("conv", "convt") for i in range(3)]
    prefix = "Factor_Transfer/Factor_transfer"
    names = assign(paraphraser, stored, [f"{prefix}/{key}" for key in layers])
    weights = [weight.value for weight in paraphraser.trainable_variables]
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(abs(paraphraser.reconstruct(maps) - maps))
    assert float(loss) == pytest.approx(float(stored["para_loss"]), rel=1e-4)
    found = tape.gradient(loss, weights)
    for gradient, name in zip(found, names, strict=True):
        close(gradient, stored[f"grad_para/var/{name}"], 1e-3)


@pytest.mark.parametrize(
    ("distance", "key"), [("absolute", "p2_1"), ("squared", "p2_2")]
)
def test_published_numbers_of_attention(distance, key, golden, close):
    stored = golden("repd_ft")
    student = features(stored["in/student"])
    teacher = features(stored["in/teacher"])
    method = FactorTransfer("attention", distance=distance, weight=1.0)
    method = built(method, student, teacher)
    assert method.trainable_variables == []
    loss, of_student, _ = run(method, student, teacher)
    assert float(loss) == pytest.approx(stored[f"{key}/loss"], rel=1e-4)
    close(of_student, stored[f"{key}/grad/student"], 1e-3)


def test_hand_value():
    """Two positions, two channels: (3, 4), (0, 0) and (0, 2), (0, 0).

    Unit vectors (3, 4) / 5 and (0, 1), whether of the whole or position by
    position: |3/5| + |1/5| over four entries, 9/25 + 1/25. With the teacher's
    second position (0, 2) too, its whole is (0, 1, 0, 1) / sqrt 2.
    """
    student = np.reshape([3.0, 4.0, 0.0, 0.0], (1, 1, 2, 2))
    teacher = np.reshape([0.0, 2.0, 0.0, 0.0], (1, 1, 2, 2))
    for per_position in (False, True):
        for distance, expected in (("absolute", 0.2), ("squared", 0.1)):
            found = factor_transfer_loss(
                student, teacher, distance, per_position
            )
            assert float(found) == pytest.approx(expected, rel=1e-9)
    teacher[..., 1] = 2.0
    root = 1 / np.sqrt(2)
    found = factor_transfer_loss(student, teacher)
    expected = (0.6 + abs(0.8 - root) + root) / 4
    assert float(found) == pytest.approx(expected, rel=1e-9)
    found = factor_transfer_loss(student, teacher, per_position=True)
    assert float(found) == pytest.approx((0.6 + 0.2 + 1) / 4, rel=1e-9)


def test_hand_value_of_the_paraphraser():
    """A negative map of one position through kernels that keep the centre.

    Each of three layers has slope 0.1: -2 becomes -2e-3, whose direction is
    -1; the translator's, of the student's +1, is +1: distance 2, and weight
    500. Decoded by three more, -2e-6.
    """
    student, teacher = features([[[[1.0]]]]), features([[[[-2.0]]]])
    method = built(FactorTransfer(rate=1), student, teacher)
    for variable in method.paraphraser.variables + method.translator.variables:
        centre = np.zeros(variable.shape)
        if len(variable.shape) == 4:
            centre[1, 1] = 1
        variable.assign(centre)
    factor = method.paraphraser(teacher.maps[0])
    assert float(factor[0, 0, 0, 0]) == pytest.approx(-2e-3, rel=1e-5)
    decoded = method.paraphraser.reconstruct(teacher.maps[0])
    assert float(decoded[0, 0, 0, 0]) == pytest.approx(-2e-6, rel=1e-5)
    loss, *_ = run(method, student, teacher)
    assert float(loss) == pytest.approx(1000, rel=1e-6)


@pytest.mark.parametrize("distance", ["absolute", "squared"])
@pytest.mark.parametrize("per_position", [False, True])
def test_gradient_against_finite_differences(distance, per_position):
    student = np.random.default_rng(0).normal(size=(2, 3, 2, 2))
    teacher = tf.constant(np.random.default_rng(1).normal(size=(2, 2, 2, 2)))

    def loss(student):
        return factor_transfer_loss(student, teacher, distance, per_position)

    variable = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch([variable, teacher])
        value = loss(variable)
    assert value.dtype == tf.float64
    found, of_teacher = tape.gradient(value, [variable, teacher])
    assert of_teacher is None
    numeric, step = np.zeros_like(student), 1e-6
    for index in np.ndindex(*student.shape):
        high, low = student.copy(), student.copy()
        high[index] += step
        low[index] -= step
        numeric[index] = (loss(high) - loss(low)) / (2 * step)
    np.testing.assert_allclose(found, numeric, atol=1e-8)
    assert np.abs(numeric).max() > 1e-3


DEGENERATE = {
    "zero": (tf.zeros((3, 4, 4, 2)), tf.zeros((3, 4, 4, 5))),
    "zero student": (tf.zeros((3, 4, 4, 2)), draw(1, 3, 4, 4, 5)),
    "constant": (tf.ones((3, 4, 4, 2)), tf.ones((3, 4, 4, 5))),
    "one sample": (draw(0, 1, 7, 5, 4), draw(1, 1, 7, 5, 5)),
    "float16": (
        draw(0, 3, 4, 4, 2, dtype="float16"),
        draw(1, 3, 2, 3, 5, dtype="float16"),
    ),
    "bfloat16": (
        draw(0, 3, 4, 4, 2, dtype="bfloat16"),
        draw(1, 3, 6, 6, 5, dtype="bfloat16"),
    ),
}


@pytest.mark.parametrize("factor", [*FORMS, "attention"])
@pytest.mark.parametrize("distance", ["absolute", "squared"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_maps(name, factor, distance):
    student, teacher = (features(each) for each in DEGENERATE[name])
    method = FactorTransfer(factor, distance=distance)
    loss, of_student, of_weights = run(
        built(method, student, teacher), student, teacher
    )
    assert loss.dtype == tf.float32 and loss.shape == ()
    assert of_student.dtype == student.maps[0].dtype
    for each in (loss, of_student, *of_weights):
        assert np.isfinite(tf.cast(each, tf.float32)).all()


def test_attention_of_sequences():
    student, teacher = features(draw(0, 2, 6, 3)), features(draw(1, 2, 3, 4))
    method = built(FactorTransfer("attention"), student, teacher)
    assert float(run(method, student, teacher)[0]) > 0


@pytest.mark.parametrize("factor", FORMS)
def test_unknown_batch_under_xla(factor):
    student, teacher = (features(draw(i, 3, 4, 4, 2)) for i in (0, 1))
    method = built(FactorTransfer(factor), student, teacher)
    compiled = tf.function(
        lambda s, t: method.call(features(s), features(t), None),
        input_signature=[tf.TensorSpec((None, 4, 4, 2))] * 2,
        jit_compile=True,
    )
    np.testing.assert_allclose(
        compiled(student.maps[0], teacher.maps[0])["factor_transfer"],
        run(method, student, teacher)[0],
        rtol=1e-5,
    )


# --- the paraphraser


@pytest.mark.parametrize(
    ("arguments", "encoder", "decoder", "size"),
    [
        ({}, [24, 12, 12], [12, 24, 24], 7),
        ({"rate": 2}, [24, 48, 48], [48, 24, 24], 7),
        ({"pyramid": True}, [12, 6, 3], [6, 12, 24], 4),
        ({"pyramid": True, "rate": 0.1}, [2, 1, 1], [1, 2, 24], 4),
    ],
)
def test_shapes_and_saving(arguments, encoder, decoder, size, tmp_path):
    paraphraser = Paraphraser(24, **arguments)
    for layer, widths in ((0, encoder), (1, decoder)):
        stack = (paraphraser.encoder, paraphraser.decoder)[layer]
        assert [each.filters for each in stack.convolutions] == widths
    maps = draw(0, 2, 7, 6, 24)
    factors = paraphraser(maps)
    assert factors.shape[1] == size
    assert factors.shape[-1] == encoder[-1]
    decoded = paraphraser.reconstruct(maps)
    assert decoded.shape == maps.shape
    paraphraser.save(tmp_path / "paraphraser.keras")
    loaded = keras.saving.load_model(tmp_path / "paraphraser.keras")
    assert loaded.get_config() == paraphraser.get_config()
    np.testing.assert_array_equal(loaded(maps), factors)
    np.testing.assert_array_equal(loaded.reconstruct(maps), decoded)


def test_computes_in_float32_under_a_mixed_policy():
    keras.config.set_dtype_policy("mixed_float16")
    paraphraser = Paraphraser(4)
    maps = draw(0, 2, 4, 4, 4, dtype="float16")
    assert paraphraser(maps).dtype == tf.float32
    assert paraphraser.reconstruct(maps).dtype == tf.float32


@pytest.mark.slow
def test_reconstruction_is_learnt():
    """Maps of two channels in four, given as what a teacher's pass kept."""
    images = draw(0, 16, 4, 4, 2)
    maps = tf.nn.relu(tf.einsum("bhwc,cd->bhwd", images, draw(1, 2, 4)))

    def not_run(images):
        raise AssertionError("The teacher's maps are known.")

    for reconstruction, least in (("squared", 0.4), ("absolute", 0.7)):
        keras.utils.set_random_seed(0)
        paraphraser = Paraphraser(4, rate=1)
        trainer = ParaphraserTrainer(paraphraser, not_run, reconstruction)
        trainer.compile(keras.optimizers.SGD(0.1, 0.9, nesterov=True))
        kept = {"outputs": tf.zeros((16, 3)), "maps": (images, maps)}
        taught = Taught(images, kept)
        stream = tf.data.Dataset.from_tensors((taught, tf.zeros(16)))
        losses = trainer.fit(
            stream.repeat(),
            steps_per_epoch=50,
            epochs=6,
            shuffle=False,
            verbose=0,
        ).history["loss"]
        assert losses[-1] < least * losses[0]
        difference = paraphraser.reconstruct(maps) - maps
        power = 2 if reconstruction == "squared" else 1
        found = np.mean(np.abs(difference) ** power)
        assert found == pytest.approx(losses[-1], rel=0.2)


# --- preparation


def extractor(model):
    return FeatureExtractor(model, ["stage1", "stage2"])


@pytest.mark.parametrize("factor", FORMS)
def test_prepares_on_the_teacher_and_freezes(factor, small_net, images):
    teacher, student = extractor(small_net("t")), extractor(small_net("s"))
    method = FactorTransfer(factor, preparation_epochs=2)
    method.build(student.shapes, teacher.shapes)
    assert not method.preparation.done
    assert method.trainable_variables == method.translator.trainable_variables
    before = [weight.numpy() for weight in method.paraphraser.weights]
    translator = method.translator.get_weights()
    x, _ = images
    method.preparation.run(teacher, student, x=x, batch_size=16, verbose=0)
    assert method.preparation.done
    assert not method.paraphraser.trainable
    for a, b in zip(method.paraphraser.get_weights(), before, strict=True):
        assert not np.array_equal(a, b)
    for a, b in zip(method.translator.get_weights(), translator, strict=True):
        np.testing.assert_array_equal(a, b)
    assert method.preparation.networks == {"paraphraser": method.paraphraser}


def test_a_broken_off_preparation_leaves_it_frozen(small_net, images):
    teacher, student = extractor(small_net("t")), extractor(small_net("s"))
    method = FactorTransfer()
    method.build(student.shapes, teacher.shapes)

    class Stop(keras.callbacks.Callback):
        def on_batch_begin(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.preparation.run(
            teacher, student, x=images[0], verbose=0, callbacks=[Stop()]
        )
    assert not method.preparation.done
    assert not method.paraphraser.trainable


def test_two_students_share_a_paraphraser(
    small_net, distiller, images, tmp_path
):
    x, y = images
    teacher = small_net("teacher")
    first = distiller(
        FactorTransfer("pyramid", rate=0.75, preparation_epochs=1),
        teacher=teacher,
        run_eagerly=True,
    )
    first.fit(x, y, batch_size=16, verbose=0)
    first.methods[0].paraphraser.save(tmp_path / "paraphraser.keras")
    loaded = keras.saving.load_model(tmp_path / "paraphraser.keras")
    before = loaded.get_weights()
    maps = extractor(teacher)(x).maps[-1]
    np.testing.assert_array_equal(
        first.methods[0].paraphraser(maps), loaded(maps)
    )

    method = FactorTransfer(paraphraser=loaded)
    assert (method.factor, method.rate) == ("pyramid", 0.75)
    student = small_net("student", widths=(3, 5))
    second = distiller(method, student, teacher, run_eagerly=True)
    assert method.preparation.done
    assert not method.preparation.networks  # it has learnt none itself
    assert method.paraphraser is loaded
    translator = method.translator.get_weights()
    history = second.fit(x, y, batch_size=16, epochs=2, verbose=0).history
    assert np.isfinite(history["factor_transfer"]).all()
    for a, b in zip(loaded.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(method.translator.get_weights(), translator, strict=True):
        assert not np.array_equal(a, b)


@pytest.mark.parametrize("factor", ["paraphraser", "attention"])
def test_trains_saves_and_loads(factor, distiller, images, tmp_path):
    x, y = images
    model = distiller(FactorTransfer(factor, preparation_epochs=1))
    history = model.fit(x, y, batch_size=16, verbose=0).history
    assert np.isfinite(history["factor_transfer"]).all()
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert loaded.prepared
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_attention_has_nothing_to_prepare(small_net, images):
    teacher, student = extractor(small_net("t")), extractor(small_net("s"))
    method = FactorTransfer("attention")
    method.build(student.shapes, teacher.shapes)
    assert method.preparation.done
    assert method.preparation.networks == {}
    assert method.trainable_variables == []


@pytest.mark.parametrize("factor", [*FORMS, "attention"])
def test_targets_are_what_is_read(factor, small_net, images):
    student, teacher = extractor(small_net("s")), extractor(small_net("t"))
    method = FactorTransfer(factor)
    method.build(student.shapes, teacher.shapes)
    of_student, of_teacher = student(images[0]), teacher(images[0])
    targets = method.targets(of_teacher)
    assert len(targets.maps) == 1
    found, expected = (
        method.call(of_student, each, None)["factor_transfer"]
        for each in (targets, of_teacher)
    )
    assert float(found) == float(expected) > 0


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"factor": "atention"},
            ValueError,
            "`factor` must be one of .*mean 'attention'",
        ),
        ({"rate": 0}, ValueError, "`rate` must be positive.*rate=0"),
        ({"distance": "p"}, ValueError, "`distance` must be one of absolute"),
        (
            {"reconstruction": "square"},
            ValueError,
            "`reconstruction` must be one of .*mean 'squared'",
        ),
        (
            {"preparation_epochs": -1},
            ValueError,
            "`preparation_epochs` must be 0 or more.*=-1",
        ),
        (
            {"paraphraser": "paraphraser.keras"},
            TypeError,
            "`paraphraser` must be a Paraphraser .*'paraphraser.keras' of typ",
        ),
    ],
)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        FactorTransfer(**arguments)


@pytest.mark.parametrize("name", ["channels", "rate"])
def test_wrong_arguments_of_the_paraphraser(name):
    with pytest.raises(ValueError, match=f"`{name}` must be positive.*=0"):
        Paraphraser(**{"channels": 3, name: 0})


def test_loss_refuses_an_unknown_distance():
    maps = tf.zeros((1, 2, 2, 1))
    with pytest.raises(ValueError, match="`distance` must be one of .*='max'"):
        factor_transfer_loss(maps, maps, "max")


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({}, (2, 4, 3), "must be `maps .*Received: shapes .*Choose another"),
        ({}, (2, 3), "must be `maps .*Received: shapes .*Choose another"),
        (
            {"factor": "attention"},
            (2, 1, 1, 3),
            "must have `more than one position`.*Choose",
        ),
        (
            {"paraphraser": Paraphraser(4)},
            (2, 4, 4, 3),
            "at the same sensing point. Received: one for 4 .* with 3. Leave",
        ),
    ],
)
def test_refuses(arguments, shape, message):
    maps = features(draw(0, *shape))
    with pytest.raises(ValueError, match=message):
        built(FactorTransfer(**arguments), maps, maps)


def test_config_round_trip():
    arguments = {
        "factor": "pyramid",
        "rate": 0.25,
        "distance": "squared",
        "reconstruction": "squared",
        "preparation_epochs": 3,
        "preparation_learning_rate": 0.2,
        "weight": 2.0,
        "name": "mine",
    }
    config = FactorTransfer(**arguments).get_config()
    found = FactorTransfer.from_config(config)
    assert {key: config[key] for key in arguments} == arguments
    assert found.get_config() == config


def test_a_configuration_makes_a_paraphraser_alike_but_untrained():
    maps = features(draw(0, 2, 4, 4, 6))
    given = FactorTransfer(paraphraser=Paraphraser(6, 0.3, pyramid=True))
    found = FactorTransfer.from_config(built(given, maps, maps).get_config())
    built(found, maps, maps)
    assert found.paraphraser.get_config() == given.paraphraser.get_config()
    assert not found.preparation.done


@pytest.mark.slow
def test_attention_beside_a_method_that_reads_all_masks():
    situation, found = SITUATIONS["tagging"], []
    for others in ([], ["overhaul"]):
        keras.utils.set_random_seed(3)
        model = keras_mhgd.Distiller(
            situation.student(),
            situation.teacher(),
            [FactorTransfer("attention"), "soft_logits", *others],
        )
        model.compile(keras.optimizers.SGD(0.001), **situation.task)
        history = model.fit(
            situation.x,
            situation.y,
            sample_weight=situation.weight,
            verbose=0,
        ).history
        found.append(history["factor_transfer"][0])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
