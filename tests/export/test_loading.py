import gc
import pathlib
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import export
from tests.export.networks import (
    conv_net,
    dense_net,
    distiller,
    images,
    layers,
    two_inputs,
)
from tests.training.launcher import launch

# Saving in Keras 3.15 with NumPy 2: its own array protocol, not ours.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)


def test_loads_keras_files(tmp_path):
    model = conv_net()
    expected = model.predict(images(), verbose=0)
    model.save(tmp_path / "plain.keras")
    distiller(model).save(tmp_path / "distiller.keras")
    for name in ("plain", "distiller"):
        predict = export.load(tmp_path / f"{name}.keras")
        gc.collect()  # nobody but the function holds the weights
        np.testing.assert_allclose(predict(images()), expected, rtol=1e-6)


def lambda_keras(path):
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x)])
    model.save(path)


def foreign_saved_model(path):
    module = tf.Module()
    module.run = tf.function(
        lambda x: x, input_signature=[tf.TensorSpec((None, 2))]
    )
    tf.saved_model.save(module, str(path))


def truncated_keras(path):
    dense_net().save(path)
    path.write_bytes(path.read_bytes()[:-100])


def foreign_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello.txt", "hello")


def truncated_tflite(path):
    dense_net().export(str(path), format="litert", verbose=False)
    path.write_bytes(path.read_bytes()[:200])


def fixed_batch_keras(path):
    keras.Sequential([keras.Input((2,), batch_size=4), layers.Dense(2)]).save(
        path
    )


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("a.keras", lambda path: path.write_text("text"), "can't be read"),
        ("a.keras", lambda path: path.write_bytes(b""), "can't be read"),
        ("a.keras", foreign_zip, "can't be read"),
        ("a.keras", truncated_keras, "can't be read"),
        ("a.keras", lambda_keras, "can't be read.* Cause: .*[Ll]ambda"),
        (
            "a.keras",
            fixed_batch_keras,
            "can't be read.* Cause: .*floats or integers of any batch size",
        ),
        ("a.tflite", lambda path: path.write_text("text"), "can't be read"),
        ("a.tflite", lambda path: path.write_bytes(b""), "can't be read"),
        ("a.tflite", truncated_tflite, "can't be read"),
        ("a.onnx", lambda path: path.write_text("text"), "can't be read"),
        ("a.onnx", lambda path: path.write_bytes(b""), "can't be read"),
        ("folder", lambda path: path.mkdir(), "can't be read. Name a file"),
        ("folder", foreign_saved_model, "no endpoint `serve` in "),
        ("a.txt", lambda path: path.write_text("text"), "Convert it to one"),
    ],
)
def test_unreadable_files(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(
        ValueError,
        match="(?s)`path` must be a .keras file, a SavedModel folder, a "
        ".tflite or an .onnx file of a network that takes floats or "
        "integers. Received: "
        f"path='{path}'.*{message}",
    ):
        export.load(path)


def test_several_inputs_are_given_by_name_or_in_order(tmp_path):
    two_inputs().save(tmp_path / "a.keras")
    predict = export.load(tmp_path / "a.keras")
    first, second = images(3, (2,)), images(4, (2,))[1:]
    for given in ([first, second], {"input_1": second, "input_0": first}):
        np.testing.assert_allclose(predict(given), first + second)
    for given, message in (
        (
            first,
            r"`images` must hold an array for each input of the network, "
            r"\['input_0', 'input_1'\]. Received: \['images'\]. Pass a dict",
        ),
        (
            [first, second[:, :1]],
            r"`images\['input_1'\]` must have the shape \(N, 2\) with N >= 1",
        ),
        (
            [first, second[1:]],
            "must hold as many samples for one input as for the others. "
            r"Received: {'input_0': 3, 'input_1': 2}. Pass arrays of one leng",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            predict(given)


def test_corrupt_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"text")
    with pytest.raises(
        ValueError, match="which can't be read. Write it again. Cause: "
    ):
        export.load(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="`path` must be .* which doesn't exist."
    ):
        export.load(tmp_path / "none.keras")


@pytest.mark.slow
def test_damaged_files_are_refused_and_crash_nothing(tmp_path):
    """Cut, or with other bytes, by seed, all read in one process."""
    export.export_student(
        dense_net(),
        tmp_path,
        images(9, (8,)),
        ["saved_model", "tflite", "tflite_int8", "onnx"],
        calibration=images(9, (8,)),
        least_agreement={"tflite_int8": 0.5},
    )
    variables = "variables/variables"
    for network, part, count in (
        ("saved_model", "saved_model.pb", 6),
        ("saved_model", f"{variables}.index", 6),
        ("saved_model", f"{variables}.data-00000-of-00001", 6),
        ("model.tflite", "", 30),
        ("model_int8.tflite", "", 30),
        ("model.onnx", "", 200),
    ):
        path = tmp_path / network
        code, output = launch(
            "tests.export.damage", str(path), str(path / part), str(count)
        )
        assert code == 0, output
        refused, answered = map(int, output.split()[-2:])
        assert refused + answered == count
        assert refused > count / 3, output


def test_a_file_that_ends_the_process_is_refused():
    path = pathlib.Path(__file__).with_name("ends_the_process.tflite")
    with pytest.raises(ValueError, match="it ends the process that opens it"):
        export.load(path)
