import hashlib
import io
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.callbacks import Checkpoint


def network():
    """With dropout: its seed generator is state too."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(6, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


def state(model):
    return model.variables + model.optimizer.variables


def values(model):
    return [variable.numpy().copy() for variable in state(model)]


def train(model, checkpoint=None, until=4, **arguments):
    rng = np.random.default_rng(0)
    model.fit(
        rng.normal(size=(24, 4)).astype("float32"),
        np.arange(24) % 3,
        batch_size=8,
        shuffle=False,
        verbose=0,
        epochs=until,
        callbacks=[checkpoint] if checkpoint else None,
        **arguments,
    )


@pytest.fixture
def numbers(tmp_path):
    """Three variables and a checkpoint after each of two epochs."""
    variables = [
        keras.Variable(np.full(shape, 0.0, "float32"))
        for shape in ((), (2,), (2, 3))
    ]
    checkpoint = Checkpoint(tmp_path / "checkpoints", variables)
    for epochs in (1, 2):
        assign(variables, epochs)
        checkpoint.save(epochs)
    assign(variables, 0)
    return checkpoint, variables


def assign(variables, value):
    for index, variable in enumerate(variables):
        variable.assign(np.full(variable.shape, value + 10.0 * index))


def holds(variables, value):
    return all(
        (variable.numpy() == np.float32(value + 10.0 * index)).all()
        for index, variable in enumerate(variables)
    )


def newest(checkpoint):
    return checkpoint.directory / "epoch_00002.npz"


@pytest.mark.slow
def test_resumed_training_equals_the_uninterrupted_one(tmp_path):
    straight = network()
    train(straight)

    keras.utils.set_random_seed(0)
    killed = network()
    train(killed, Checkpoint(tmp_path, state(killed)), until=2)
    expected = values(killed)
    del killed

    keras.utils.set_random_seed(5)
    resumed = network()
    checkpoint = Checkpoint(tmp_path, state(resumed))
    initial_epoch = checkpoint.restore().epochs
    assert initial_epoch == 2
    for a, b in zip(values(resumed), expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    train(resumed, checkpoint, initial_epoch=initial_epoch)
    for a, b in zip(values(resumed), values(straight), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_resuming_needs_the_seed_generators(tmp_path):
    """Weights and optimizer alone give another training: dropout differs."""
    straight = network()
    train(straight)

    def state(model):
        return model.weights + model.optimizer.variables

    keras.utils.set_random_seed(0)
    killed = network()
    train(killed, Checkpoint(tmp_path, state(killed)), until=2)
    resumed = network()
    checkpoint = Checkpoint(tmp_path, state(resumed))
    train(resumed, initial_epoch=checkpoint.restore().epochs)
    assert not np.array_equal(values(resumed)[0], values(straight)[0])


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_goes_on_within_an_epoch(tmp_path, steps):
    """Weights and metrics as of a training that wasn't killed."""

    def stream(epoch):
        rng = np.random.default_rng(epoch)
        x, y = rng.normal(size=(24, 4)).astype("float32"), np.arange(24) % 3
        return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)

    def train(model, first, skip=0, callbacks=()):
        return model.fit(
            stream(first).skip(skip),
            initial_epoch=first,
            epochs=first + 1,
            callbacks=list(callbacks),
            shuffle=False,
            verbose=0,
        ).history

    class Killed(BaseException):
        pass

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch + 1 == steps:
                raise Killed

    keras.utils.set_random_seed(0)
    straight = network()
    train(straight, 0)
    expected = train(straight, 1)

    keras.utils.set_random_seed(0)
    killed = network()
    checkpoint = Checkpoint(tmp_path, state(killed), save_freq=1)
    train(killed, 0, callbacks=[checkpoint])
    with pytest.raises(Killed):
        train(killed, 1, callbacks=[checkpoint, Kill()])
    names = sorted(os.listdir(tmp_path))
    assert names[-1] == f"epoch_00001_step_{steps:06d}.npz"

    resumed = network()
    checkpoint = Checkpoint(tmp_path, state(resumed))
    position = checkpoint.restore()
    assert position == (1, steps)
    with pytest.raises(ValueError, match="`evaluate` one batch before `fit`"):
        train(resumed, 1, steps, [checkpoint])
    resumed.evaluate(stream(0).take(1), verbose=0)
    assert train(resumed, 1, steps, [checkpoint]) == expected
    assert checkpoint.position == (2, 0)
    for a, b in zip(values(resumed), values(straight), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keeps_the_newest(tmp_path, keep):
    model = network()
    train(model, Checkpoint(tmp_path / "deep" / "folder", state(model), keep))
    expected = [f"epoch_{epoch:05d}.npz" for epoch in range(5 - keep, 5)]
    assert sorted(os.listdir(tmp_path / "deep" / "folder")) == expected


def test_keeps_two_unless_told(numbers):
    checkpoint, variables = numbers
    checkpoint.save(3)
    names = ["epoch_00002.npz", "epoch_00003.npz"]
    assert sorted(os.listdir(checkpoint.directory)) == names


def test_an_empty_folder_starts_anew(tmp_path):
    variable = keras.Variable(3.0)
    assert Checkpoint(tmp_path, [variable]).restore() == (0, 0)
    assert variable.numpy() == 3


def test_a_failed_write_leaves_the_earlier_ones(numbers, monkeypatch):
    checkpoint, variables = numbers

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(3)
    names = ["epoch_00001.npz", "epoch_00002.npz"]
    assert sorted(os.listdir(checkpoint.directory)) == names
    assert checkpoint.restore() == (2, 0)
    assert holds(variables, 2)


DAMAGE = {
    "empty": lambda content: b"",
    "not an archive": lambda content: b"damaged" * 50,
    "only zeros": lambda content: bytes(len(content)),
    "first half": lambda content: content[: len(content) // 2],
    "last half": lambda content: content[len(content) // 2 :],
    "another value": lambda content: content.replace(
        np.full((2, 3), 22.0, "float32").tobytes(),
        np.full((2, 3), 22.5, "float32").tobytes(),
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_is_passed_over(numbers, damage):
    checkpoint, variables = numbers
    path = newest(checkpoint)
    content = path.read_bytes()
    path.write_bytes(DAMAGE[damage](content))
    assert path.read_bytes() != content
    message = r"epoch_00002.npz is damaged \(.*\); the one before it is used"
    with pytest.warns(UserWarning, match=message):
        assert checkpoint.restore() == (1, 0)
    assert holds(variables, 1)
    # Training goes on: the damaged file is replaced.
    assign(variables, 2)
    checkpoint.save(2)
    assign(variables, 0)
    assert checkpoint.restore() == (2, 0)
    assert holds(variables, 2)


def test_any_damaged_byte_is_noticed(numbers):
    checkpoint, variables = numbers
    path = newest(checkpoint)
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[place] ^= 1 + place // 3 % 255
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged .its checksum is wrong"):
            assert checkpoint.restore() == (1, 0)
        assert holds(variables, 1)


def test_all_damaged_is_an_error(numbers):
    checkpoint, variables = numbers
    for path in checkpoint.directory.iterdir():
        path.write_bytes(b"")
    text = r"must hold a checkpoint .* Received: \d+ that .* Delete the folder"
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=text),
    ):
        checkpoint.restore()
    assert holds(variables, 0)


@pytest.mark.parametrize(
    "shapes",
    [
        [(), (2,)],
        [(), (2,), (2, 3), ()],
        [(), (3,), (2, 3)],
        [(2,), (), (2, 3)],
    ],
)
def test_other_variables_are_an_error(numbers, shapes):
    checkpoint, _ = numbers
    others = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
    other = Checkpoint(checkpoint.directory, others)
    message = (
        f"epoch_00002.npz must hold the {len(shapes)} variables of this "
        "training in format version 2. Received: 3 arrays, version 2. Use "
    )
    with pytest.raises(ValueError, match=message):
        other.restore()
    assert not any(np.any(variable.numpy()) for variable in others)


@pytest.mark.parametrize(
    ("arrays", "received"),
    [
        ({}, "0 arrays, version None"),
        ({"version": 3}, "0 arrays, version 3"),
    ],
)
def test_another_format_is_an_error(numbers, arrays, received):
    checkpoint, variables = numbers
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).digest()
    newest(checkpoint).write_bytes(content + digest)
    with pytest.raises(ValueError, match=f"Received: {received}"):
        checkpoint.restore()


def test_foreign_files_are_left_alone(numbers):
    checkpoint, variables = numbers
    foreign = {
        "README",
        "epoch_00009.npz.bak",
        ".epoch_00009.npz.123.tmp",
        "epoch_last.npz",
        "epoch_00007.keras",
    }
    for name in foreign:
        (checkpoint.directory / name).write_text("foreign")
    assert checkpoint.restore() == (2, 0)
    assert holds(variables, 2)
    checkpoint.save(3)
    names = {"epoch_00002.npz", "epoch_00003.npz"}
    assert set(os.listdir(checkpoint.directory)) == foreign | names


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "uint32"])
def test_any_dtype(tmp_path, dtype):
    initial = np.arange(4).astype(dtype if dtype != "bfloat16" else "float32")
    variable = keras.Variable(initial, dtype=dtype)
    checkpoint = Checkpoint(tmp_path, [variable])
    checkpoint.save(1)
    variable.assign(variable * 0)
    assert checkpoint.restore() == (1, 0)
    np.testing.assert_array_equal(variable.numpy(), initial)


def test_refuses_to_keep_none(tmp_path):
    with pytest.raises(ValueError, match="`keep` must be 1 or more.*keep=0"):
        Checkpoint(tmp_path, [], keep=0)
    with pytest.raises(ValueError, match="`save_freq` must be 1 or more"):
        Checkpoint(tmp_path, [], save_freq=0)
