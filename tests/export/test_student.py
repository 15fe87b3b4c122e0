import dataclasses
import gc
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import export

# Saving in Keras 3.15 with NumPy 2: its own array protocol, not ours.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)
layers = keras.layers
SHAPE = (12, 12, 3)


@keras.saving.register_keras_serializable("test_export")
class Block(layers.Layer):
    """Makes its own layer without passing on a dtype policy."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)
        self.built = True

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("test_export")
class NoMethod(keras_mhgd.methods.Method):
    """A method without terms."""

    def call(self, student, teacher, labels):
        return {}


def randomise(model):
    """Gives every weight a value that shows, moving statistics included."""
    rng = np.random.default_rng(1)
    model.set_weights(
        [rng.uniform(0.1, 0.9, w.shape) - 0.4 * (w.ndim > 1) for w in
         model.get_weights()]
    )  # fmt: skip
    return model


def conv_net():
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU(max_value=6.0)(x)
    x = layers.MaxPooling2D()(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = layers.Flatten()(x)
    return randomise(keras.Model(inputs, layers.Dense(5)(x), name="conv_net"))


def dense_net():
    model = [keras.Input((8,)), layers.Dense(4, "relu"), layers.Dense(3)]
    return randomise(keras.Sequential(model))


def composite_net():
    """Nested model, wrapper and a layer that makes a layer."""
    inner = keras.Sequential(
        [keras.Input((6, 3)), layers.TimeDistributed(layers.Dense(4))]
    )
    inputs = keras.Input((6, 3))
    x = layers.GlobalAveragePooling1D()(inner(inputs))
    return randomise(keras.Model(inputs, Block(5)(x)))


def distiller(student):
    teacher = keras.models.clone_model(student)
    return keras_mhgd.Distiller(student, teacher, method=NoMethod())


def images(n=7, shape=SHAPE):
    return np.random.default_rng(0).normal(size=(n, *shape)).astype("float32")


@pytest.fixture
def no_conversion(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("converted before the arguments were checked")

    monkeypatch.setattr(export, "_in_float32", fail)


@pytest.fixture
def mixed_precision(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported") / "new" / "folder"
    model = conv_net()
    return model, export.export_student(model, directory, images()), directory


def test_writes_both_formats_and_nothing_else(exported):
    model, files, directory = exported
    assert [f.format for f in files] == ["saved_model", "tflite"]
    assert sorted(os.listdir(directory)) == ["model.tflite", "saved_model"]
    assert [f.path.name for f in files] == ["saved_model", "model.tflite"]
    assert files[1].size == (directory / "model.tflite").stat().st_size
    for file in files:
        # Everything is float32, so the weights take four bytes each.
        assert 4 * model.count_params() < file.size < 200_000
        assert file.max_difference < 1e-5
        assert file.agreement == 1.0
        assert file.latency > 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            file.size = 0


@pytest.mark.parametrize("n", [1, 7, export._BATCH_SIZE + 1])
@pytest.mark.parametrize("i", [0, 1])
def test_any_batch_size_gives_the_answers_of_the_model(exported, n, i):
    model, files, _ = exported
    predict = export.load(files[i].path)
    expected = model.predict(images(n), verbose=0)
    outputs = predict(images(n))
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    # And with another size after that.
    np.testing.assert_allclose(
        predict(images(n)[:1]), expected[:1], rtol=1e-4, atol=1e-5
    )


def test_files_work_in_a_process_without_the_package(exported, tmp_path):
    model, files, _ = exported
    np.save(tmp_path / "images.npy", images())
    code = """
import sys
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
folder, saved_model, tflite = sys.argv[1:]
images = np.load(folder + "/images.npy")
module = tf.saved_model.load(saved_model)
for n in (1, 7):
    np.save(f"{folder}/saved_model_{n}.npy", module.serve(images[:n]).numpy())
    interpreter = Interpreter(tflite)
    signature = interpreter.get_signature_runner()
    (name,) = signature.get_input_details()
    (outputs,) = signature(**{name: images[:n]}).values()
    np.save(f"{folder}/tflite_{n}.npy", outputs)
assert not [m for m in sys.modules if m.startswith("keras_mhgd")]
"""
    paths = [str(file.path) for file in files]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *paths],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    for n in (1, 7):
        expected = model.predict(images(n), verbose=0)
        for name in ("saved_model", "tflite"):
            outputs = np.load(tmp_path / f"{name}_{n}.npy")
            np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_saved_model_holds_each_variable_once(exported):
    model, files, _ = exported
    checkpoint = str(files[0].path / "variables" / "variables")
    stored = tf.train.list_variables(checkpoint)
    shapes = [shape for name, shape in stored if name.endswith("VALUE")]
    assert sorted(shapes) == sorted(list(w.shape) for w in model.weights)


def test_is_quiet(tmp_path, capfd):
    export.export_student(dense_net(), tmp_path, images(2, (8,)))
    out, err = capfd.readouterr()
    assert out == ""
    assert "Saved artifact" not in err


def test_dense_head_in_one_format(tmp_path):
    model = dense_net()
    (file,) = export.export_student(
        model, str(tmp_path), images(3, (8,)), formats=["tflite", "tflite"]
    )
    assert os.listdir(tmp_path) == ["model.tflite"]
    x = images(5, (8,))
    np.testing.assert_allclose(
        export.load(str(file.path))(x), model.predict(x, verbose=0), rtol=1e-5
    )


@pytest.mark.parametrize("net", [conv_net, dense_net, composite_net])
@pytest.mark.parametrize(
    "mixed_precision", ["mixed_bfloat16", "mixed_float16"], indirect=True
)
def test_mixed_precision_is_exported_in_float32(mixed_precision, net, tmp_path):
    policy = keras.config.dtype_policy()
    model = net()
    assert model.outputs[0].dtype == policy.compute_dtype
    x = images(7, model.input_shape[1:])
    rebuilt = export._in_float32(model)
    assert keras.config.dtype_policy() == policy
    for layer in rebuilt._flatten_layers():
        assert layer.compute_dtype == "float32", layer

    # The same architecture and weights, in float32 from the start.
    keras.config.set_dtype_policy("float32")
    plain = net()
    plain.set_weights(model.get_weights())
    expected = plain.predict(x, verbose=0)
    assert export._in_float32(plain) is plain
    np.testing.assert_array_equal(rebuilt.predict(x, verbose=0), expected)

    keras.config.set_dtype_policy(policy)
    formats = ["saved_model", "tflite"] if net is conv_net else ["tflite"]
    for file in export.export_student(model, tmp_path, x, formats):
        outputs = export.load(file.path)(x)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "mixed.keras")
    mixed = export.load(tmp_path / "mixed.keras")(x)
    assert mixed.dtype == np.float32
    assert 1e-5 < np.abs(mixed - expected).max() < 0.1 * np.abs(expected).max()


def test_loads_keras_files(tmp_path):
    model = conv_net()
    expected = model.predict(images(), verbose=0)
    model.save(tmp_path / "plain.keras")
    distiller(model).save(tmp_path / "distiller.keras")
    for name in ("plain", "distiller"):
        predict = export.load(tmp_path / f"{name}.keras")
        gc.collect()  # nobody but the function holds the weights
        np.testing.assert_allclose(predict(images()), expected, rtol=1e-6)


def test_loaded_predictor_checks_images(exported):
    for file in exported[1]:
        predict = export.load(file.path)
        with pytest.raises(
            ValueError,
            match=r"`images` must have the shape \(N, 12, 12, 3\) with N >= 1. "
            r"Received: images.shape=\(2, 12, 12, 1\). Pass at least one",
        ):
            predict(images(2, (12, 12, 1)))


def test_replaces_an_older_export(tmp_path):
    old, new = dense_net(), dense_net()
    new.set_weights([2 * w for w in old.get_weights()])
    x = images(4, (8,))
    for model in (old, new):
        for file in export.export_student(model, tmp_path, x):
            np.testing.assert_allclose(
                export.load(file.path)(x),
                model.predict(x, verbose=0),
                rtol=1e-4,
            )
    assert sorted(os.listdir(tmp_path)) == ["model.tflite", "saved_model"]


def broken_conversion(model, path):
    path.write_text("half a fi")
    raise RuntimeError("no such operation")


def wrong_conversion(model, path):
    wrong = keras.models.clone_model(model)
    wrong.set_weights([w + 1 for w in model.get_weights()])
    wrong.export(path, format="litert", verbose=False)


@pytest.mark.parametrize(
    "conversion, message",
    [
        (broken_conversion, "no such operation"),
        (
            wrong_conversion,
            r"The tflite file must give the outputs of the Keras model within "
            r"tolerance=0.001. Received: largest difference \S+ at outputs up "
            r"to \S+, the same best class for \S+% of 4 images. Look for",
        ),
    ],
)
def test_failure_leaves_the_old_export(
    tmp_path, monkeypatch, conversion, message
):
    x = images(4, (8,))
    model = dense_net()
    expected = model.predict(x, verbose=0)
    files = export.export_student(model, tmp_path, x)
    model.set_weights([2 * w for w in model.get_weights()])
    with monkeypatch.context() as patch:
        tflite = ("model.tflite", conversion)
        patch.setitem(export._FORMATS, "tflite", tflite)
        with pytest.raises(RuntimeError, match=message):
            export.export_student(model, tmp_path, x)
    assert sorted(os.listdir(tmp_path)) == ["model.tflite", "saved_model"]
    for file in files:
        outputs = export.load(file.path)(x)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4)


@keras.saving.register_keras_serializable("test_export")
class Noise(layers.Layer):
    """Draws numbers at inference too, as no exported network may."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        shape = keras.ops.shape(inputs)
        return inputs + keras.random.normal(shape, seed=self.seed_generator)


def test_random_network_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((8,)), Noise(), layers.Dense(3)])
    with pytest.raises(RuntimeError, match="The saved_model file must give"):
        export.export_student(model, tmp_path, images(4, (8,)), ["saved_model"])
    assert os.listdir(tmp_path) == []


def test_refuses_outputs_that_are_not_finite(tmp_path):
    model = dense_net()
    model.set_weights([w * np.nan for w in model.get_weights()])
    with pytest.raises(
        ValueError, match="`model` must give finite outputs on `images`. Rece"
    ):
        export.export_student(model, tmp_path, images(4, (8,)), ["saved_model"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "formats, message",
    [
        (
            ["saved_model", "tflit"],
            "`formats` must be one of saved_model, tflite. Received: "
            "formats='tflit'. Did you mean 'tflite'",
        ),
        ("tflite", "Received: formats='t'"),
        ([], "`formats` must be one of saved_model, tflite. Received"),
    ],
)
def test_unknown_formats(tmp_path, no_conversion, formats, message):
    with pytest.raises(ValueError, match=message):
        export.export_student(conv_net(), tmp_path, images(), formats)


@pytest.mark.parametrize("shape", [(0, *SHAPE), SHAPE, (2, 12, 12, 1), ()])
def test_bad_images(tmp_path, no_conversion, shape):
    with pytest.raises(
        ValueError,
        match=r"`images` must have the shape \(N, 12, 12, 3\) with N >= 1. "
        r"Received: images.shape=\(.*\). Pass at least one image, prepared",
    ):
        export.export_student(conv_net(), tmp_path, np.zeros(shape))


def test_distiller_is_refused(tmp_path, no_conversion):
    for model in (distiller(conv_net()), "student.keras"):
        with pytest.raises(
            TypeError,
            match=r"`model` must be a plain `keras.Model`. Received: model=.* "
            r"of type \w+. Of a distiller, pass `distiller.student`.",
        ):
            export.export_student(model, tmp_path, images())


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def two_inputs():
    inputs = [keras.Input((2,)), keras.Input((2,))]
    return keras.Model(inputs, inputs[0] + inputs[1])


def two_outputs():
    inputs = keras.Input((2,))
    return keras.Model(inputs, [inputs + 1, inputs + 2])


def one_of(**kwargs):
    return keras.Sequential([keras.Input(**kwargs), layers.Flatten()])


@pytest.mark.parametrize(
    "make",
    [
        two_inputs,
        two_outputs,
        lambda: one_of(shape=(2,), dtype="uint8"),
        lambda: one_of(shape=(2,), batch_size=4),
        lambda: keras.Sequential([layers.Dense(2)]),
        Subclassed,
    ],
)
def test_other_models_are_refused(tmp_path, no_conversion, make):
    with pytest.raises(
        ValueError,
        match="(?s)`model` must be a built model with one input of floats or "
        "integers, of any batch size, and one output. Received: "
        r"model=<.*> with inputs=\[.*\] and outputs=\[.*\]. Build it around",
    ):
        export.export_student(make(), tmp_path, images(2, (2,)))


def test_unwritable_directory_is_found_before_converting(
    tmp_path, no_conversion
):
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            OSError,
            match=rf"The folder must be writable \(.*\). .*'{directory}'",
        ):
            export.export_student(conv_net(), directory, images())


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


def two_input_keras(path):
    two_inputs().save(path)


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
            two_input_keras,
            "can't be read.* Cause: .*one input of floats or integers",
        ),
        ("a.tflite", lambda path: path.write_text("text"), "can't be read"),
        ("a.tflite", lambda path: path.write_bytes(b""), "can't be read"),
        ("a.tflite", truncated_tflite, "can't be read"),
        ("folder", lambda path: path.mkdir(), "can't be read"),
        ("folder", foreign_saved_model, "no endpoint `serve` in "),
        ("a.txt", lambda path: path.write_text("text"), "Convert it to one"),
    ],
)
def test_unreadable_files(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    with pytest.raises(
        ValueError,
        match="(?s)`path` must be a .keras file, a SavedModel folder or a "
        ".tflite file with one input of floats or integers and one output. "
        "Received: "
        f"path='{path}'.*{message}",
    ):
        export.load(path)


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


@pytest.mark.parametrize(
    ("outputs", "probable", "expected"),
    [
        ([[0.2, 0.7, 0.1], [3.0, 1.0, 2.0]], False, [1, 0]),
        ([[-0.5], [0.3], [0.7]], False, [False, True, True]),
        ([[0.3], [0.7]], True, [False, True]),
    ],
)
def test_the_class_of_one_output_is_told_by_its_size(
    outputs, probable, expected
):
    found = export._classes(np.array(outputs), probable)
    np.testing.assert_array_equal(found, expected)
