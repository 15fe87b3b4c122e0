"""Steps whose losses or gradients are not finite: told, or undone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from keras_mhgd.callbacks import Checkpoint
from keras_mhgd.finiteness import RequireFinite, after, check
from keras_mhgd.methods import Method, Needs


class Steep(Method):
    """A loss of zero, whose gradient is NaN where an image is far too large."""

    terms = ("steep",)
    needs = Needs(outputs=True)

    def call(self, student, teacher, labels):
        zero = 0 * tf.reduce_sum(student.outputs)
        broken = tf.reduce_max(tf.abs(teacher.outputs)) > 1e3
        return {"steep": tf.cond(broken, lambda: tf.sqrt(zero), lambda: zero)}


class Unreached(Method):
    """A loss of the teacher alone."""

    terms = ("unreached",)
    needs = Needs(outputs=True)

    def call(self, student, teacher, labels):
        return {"unreached": tf.reduce_sum(teacher.outputs)}


def mhgd(clipping="per_variable"):
    mhan = keras_mhgd.graph.MHAN([6, 8], num_heads=2)
    return methods.MHGD(mhan=mhan, clipping=clipping)


METHODS = {
    "per_variable": mhgd,
    "per_feature": lambda: mhgd("per_feature"),
    "memory": lambda: methods.CRD(bank_size=32),
    "mutual_learning": lambda: methods.get("mutual_learning"),
    "gradient alone": Steep,
    "soft_logits": lambda: methods.get("soft_logits"),
}
BATCH = 8


@pytest.fixture
def with_bad_batch(images):
    """The images, and a second batch of 8 before the others'."""

    def make(value=np.nan):
        x, y = images
        bad = x[:BATCH].copy()
        bad[3, 2, 2] = value
        return tuple(
            np.concatenate([each[:BATCH], added, each[BATCH:]])
            for each, added in ((x, bad), (y, y[:BATCH]))
        )

    return make


@pytest.fixture
def train(small_net, distiller):
    """Trains; gives the distiller and its history."""

    def run(data, method, epochs=2, **changes):
        keras.utils.set_random_seed(1)
        model = distiller(
            METHODS[method](),
            student=small_net("student", dropout=0.3),
            **{"nonfinite": "skip", **changes},
        )
        history = model.fit(
            *data, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0
        ).history
        return model, history

    return run


def state(model):
    """All that a training changes, as arrays."""
    variables = [*model.resumable_variables, *model.optimizer.variables]
    return [variable.numpy() for variable in variables]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "eagerly"),
    [
        ("per_variable", False),
        ("per_feature", False),
        ("memory", False),
        ("memory", True),
        ("mutual_learning", False),
        ("gradient alone", False),
    ],
)
def test_a_skipped_step_changes_nothing(
    train, images, with_bad_batch, method, eagerly
):
    """As if the batch weren't there: weights, statistics, memory, optimizer,
    random numbers, metrics."""
    data = with_bad_batch(1e9 if method == "gradient alone" else np.nan)
    model, history = train(data, method, run_eagerly=eagerly)
    other, expected = train(images, method, run_eagerly=eagerly)
    assert history.pop("skipped_steps") == [1, 1]
    assert expected.pop("skipped_steps") == [0, 0]
    assert history == expected
    assert_same(state(model), state(other))
    assert int(model.optimizer.iterations) == 8


def test_labels_that_a_preprocessor_makes_are_measured(
    small_net, task, images, with_bad_batch
):
    """Metrics are built after the preprocessor, and are undone with a step."""

    def labelled(x, y=None, sample_weight=None):
        sums = tf.abs(tf.reduce_sum(x, axis=[1, 2, 3]))
        return x, tf.cast(sums, tf.int32) % 3, sample_weight

    found = []
    for x, _ in (with_bad_batch(), images):
        keras.utils.set_random_seed(1)
        model = keras_mhgd.Distiller(
            small_net("student"),
            small_net("teacher"),
            "soft_logits",
            student_preprocessor=labelled,
        )
        model.compile(**task(nonfinite="skip"))
        history = model.fit(x, batch_size=8, shuffle=False, verbose=0).history
        found.append(history)
    assert [each.pop("skipped_steps") for each in found] == [[1], [0]]
    assert found[0] == found[1]
    assert found[0]["accuracy"][0] > 0


@pytest.mark.slow
def test_skipping_changes_no_other_step(train, images):
    """The same bits as without it."""
    skipping, history = train(images, "per_variable")
    raising, expected = train(images, "per_variable", nonfinite="raise")
    assert "skipped_steps" not in expected
    assert history.pop("skipped_steps") == [0, 0]
    assert history == expected
    assert_same(state(skipping), state(raising))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"steps_per_execution": 3}, {"jit_compile": True}],
    ids=lambda changes: next(iter(changes)),
)
def test_options_of_compile(train, images, with_bad_batch, changes):
    model, history = train(with_bad_batch(), "soft_logits", **changes)
    other, _ = train(images, "soft_logits", **changes)
    assert history["skipped_steps"] == [1, 1]
    for a, b in zip(state(model), state(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_xla_raises_too(distiller, images, with_bad_batch, steps):
    """XLA drops the checks in the graph: the step's function raises."""
    model = distiller(
        "soft_logits", jit_compile=True, steps_per_execution=steps
    )
    model.fit(*images, batch_size=BATCH, verbose=0)
    x, y = with_bad_batch()
    model = distiller(
        "soft_logits", jit_compile=True, steps_per_execution=steps
    )
    told = "step that XLA compiled. compile.jit_compile=False. names"
    with pytest.raises(FloatingPointError, match=told):
        model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    with pytest.raises(FloatingPointError, match=told):
        model.train_on_batch(x[BATCH : 2 * BATCH], y[:BATCH])


@pytest.mark.slow
def test_xla_lets_a_loss_scale_overflow(distiller, images):
    keras.config.set_dtype_policy("mixed_float16")
    inner = keras.optimizers.SGD(0.05)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, 2.0**40)
    model = distiller("soft_logits", jit_compile=True, optimizer=optimizer)
    model.fit(*images, batch_size=BATCH, verbose=0)
    assert float(optimizer.dynamic_scale) < 2.0**40


@pytest.mark.slow
def test_the_first_step_and_data_of_unknown_labels(distiller, with_bad_batch):
    """Metrics and optimizer are made within the step that is undone."""
    x, y = with_bad_batch()
    bad, good = slice(BATCH, 2 * BATCH), slice(BATCH)
    model = distiller("soft_logits", nonfinite="skip")
    copy = keras.models.clone_model(model.student)
    copy.set_weights(model.student.get_weights())
    before = state(model)[: len(model.resumable_variables)]
    logs = model.train_on_batch(x[bad], y[bad], return_dict=True)
    assert logs["skipped_steps"] == 1
    assert_same(state(model)[: len(before)], before)
    assert int(model.optimizer.iterations) == 0
    logs = model.train_on_batch(x[good], y[good], return_dict=True)
    other = distiller("soft_logits", student=copy, teacher=model.teacher)
    expected = other.train_on_batch(x[good], y[good], return_dict=True)
    assert logs == pytest.approx(expected | {"skipped_steps": 0}, rel=1e-6)


@pytest.mark.slow
def test_a_loss_scale_is_lowered(train, images, with_bad_batch):
    """The rest is as if the batch weren't there: scales are powers of 2."""

    def optimizer(scale):
        inner = keras.optimizers.SGD(0.05, momentum=0.9)
        return keras.optimizers.LossScaleOptimizer(inner, scale)

    data = with_bad_batch()
    model, history = train(data, "per_variable", optimizer=optimizer(1024.0))
    other, _ = train(images, "per_variable", optimizer=optimizer(1024.0))
    assert history["skipped_steps"] == [1, 1]
    assert float(model.optimizer.dynamic_scale) == 256
    assert_same(
        [each.numpy() for each in model.resumable_variables],
        [each.numpy() for each in other.resumable_variables],
    )
    # An overflow, which is no fault of the losses, is a skipped step as well.
    model, history = train(
        images, "gradient alone", optimizer=optimizer(2.0**127)
    )
    skipped = sum(history["skipped_steps"])
    assert 0 < skipped < 8
    assert int(model.optimizer.iterations) == 8 - skipped
    assert float(model.optimizer.dynamic_scale) == 2.0 ** (127 - skipped)


def test_an_epoch_of_skipped_steps_ends_training(distiller, images):
    x, y = images
    model = distiller("soft_logits", nonfinite="skip")
    before = model.student.get_weights()
    with pytest.raises(
        FloatingPointError, match="NaN or infinity in all steps of epoch 1: "
    ):
        model.fit(np.full_like(x, np.nan), y, verbose=0, batch_size=16)
    assert_same(model.student.get_weights(), before)


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("per_variable", np.nan, "'teacher' must be .* at layer 'stage1'"),
        ("soft_logits", np.nan, "'teacher' must be .* at its logits"),
        ("gradient alone", 1e9, "infinity in: the gradient of .*/kernel"),
    ],
)
def test_raising_names_the_term_or_the_layer(
    train, with_bad_batch, method, value, message
):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        train(with_bad_batch(value), method, nonfinite="raise")


class Interrupt(keras.callbacks.Callback):
    """Ends a training after so many steps, as a key does."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 == self.after:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_goes_on_within_an_epoch(
    small_net, distiller, with_bad_batch, train, tmp_path, nonfinite
):
    """Killed after the skipped step and the next; resumed in either way."""
    x, y = with_bad_batch()
    expected, history = train((x, y), "memory", epochs=1)

    def made(nonfinite):
        keras.utils.set_random_seed(1)
        model = distiller(
            METHODS["memory"](),
            student=small_net("student", dropout=0.3),
            nonfinite=nonfinite,
        )
        model.optimizer.build(model.trainable_variables)
        variables = [*model.resumable_variables, *model.optimizer.variables]
        return model, Checkpoint(tmp_path, variables, save_freq=1)

    model, checkpoint = made("skip")
    with pytest.raises(KeyboardInterrupt):
        model.fit(
            x,
            y,
            batch_size=BATCH,
            shuffle=False,
            verbose=0,
            callbacks=[checkpoint, Interrupt(after=3)],
        )
    model, checkpoint = made(nonfinite)
    assert checkpoint.restore() == (0, 3)
    model.evaluate(x[:BATCH], y[:BATCH], verbose=0)
    rest = slice(3 * BATCH, None)
    logs = model.fit(
        x[rest],
        y[rest],
        batch_size=BATCH,
        shuffle=False,
        verbose=0,
        callbacks=[checkpoint],
    ).history
    assert_same(state(model), state(expected))
    assert logs["task_loss"] == history["task_loss"]
    if nonfinite == "skip":
        assert logs["skipped_steps"] == [1]


@pytest.mark.slow
def test_it_is_saved(distiller, images, tmp_path):
    model = distiller("soft_logits", nonfinite="skip")
    model.fit(*images, verbose=0)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert loaded.nonfinite == "skip"
    logs = loaded.evaluate(*images, verbose=0, return_dict=True)
    assert logs.keys() == {"loss", "accuracy"}


def test_refuses_another_name(distiller):
    with pytest.raises(ValueError, match="`nonfinite` must be one of raise, s"):
        distiller("soft_logits", nonfinite="ignore")


def test_losses_of_steps_and_of_tests_must_be_finite():
    check = RequireFinite()
    check.on_epoch_begin(2)
    check.on_train_batch_end(0, {"loss": 1.0})
    with pytest.raises(FloatingPointError, match="in epoch 3: mhgd. Lower"):
        check.on_train_batch_end(1, {"loss": 1.0, "mhgd": float("nan")})
    with pytest.raises(FloatingPointError, match="in epoch 3: val_loss. Low"):
        check.on_epoch_end(2, {"loss": 1.0, "val_loss": float("inf")})


@pytest.mark.parametrize(
    "method",
    [
        methods.MHGD,
        methods.FactorTransfer,
        methods.FitNet,
    ],
)
def test_a_preparation_that_diverges_raises(method, distiller, images):
    method = method(preparation_epochs=2, preparation_learning_rate=1e30)
    model = distiller(method)
    with pytest.raises(FloatingPointError, match="losses must be finite"):
        model.prepare(*images, verbose=0)
    assert not method.preparation.done


@pytest.mark.parametrize("value", [1.0, np.nan])
def test_values_of_any_kind_are_checked(value):
    """Of an unknown rank, scalars, and rows of an embedding's gradient."""

    @tf.function(input_signature=[tf.TensorSpec(None)], autograph=False)
    def checked(x):
        rows = tf.IndexedSlices(tf.ones((2, 3)), tf.constant([4, 0]))
        values = {"x": x, "scalar": tf.constant(2.0), "rows": rows}
        return after([check(values)], [x, None, rows])

    x = tf.constant([[1.0, value]])
    if np.isnan(value):
        with pytest.raises(tf.errors.InvalidArgumentError, match="in: x. "):
            checked(x)
    else:
        same, none, rows = checked(x)
        assert none is None and same.shape == (1, 2)
        np.testing.assert_array_equal(rows.indices, [4, 0])
        assert after([], [None]) == [None]


def test_no_loss_that_reaches_a_variable_is_an_error(small_net, images):
    """With Keras's message."""
    x, _ = images
    distiller = keras_mhgd.Distiller(small_net(), small_net(), Unreached())
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="No gradients"):
        distiller.fit(x, verbose=0)
