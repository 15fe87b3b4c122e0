import dataclasses
import os
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import export
from keras_mhgd.export import contents, formats, inference, proof, student
from keras_mhgd.export.runtimes import BATCH_SIZE
from tests.export.networks import (
    SERVING,
    SHAPE,
    composite_net,
    conv_net,
    dense_net,
    distiller,
    images,
    layers,
    normalised,
    pixels,
    randomise,
)

# Saving in Keras 3.15 with NumPy 2: its own array protocol, not ours.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)
FILES = {
    "saved_model": "saved_model",
    "tflite": "model.tflite",
    "tflite_float16": "model_float16.tflite",
    "tflite_dynamic_int8": "model_dynamic_int8.tflite",
    "tflite_int8": "model_int8.tflite",
    "onnx": "model.onnx",
}
# Largest difference from the Keras model, as a fraction of its largest output.
TOLERANCES = {
    "saved_model": 1e-5,
    "tflite": 1e-5,
    "tflite_float16": 1e-3,
    "tflite_dynamic_int8": 0.03,
    "tflite_int8": 0.03,
    "onnx": 1e-5,
}
INT8 = ("tflite_dynamic_int8", "tflite_int8")


@pytest.fixture
def no_conversion(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("converted before the arguments were checked")

    monkeypatch.setattr(student, "in_float32", fail)


@pytest.fixture
def mixed_precision(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network in all formats: model, files by format, folder, labels."""
    directory = tmp_path_factory.mktemp("exported") / "new" / "folder"
    model = conv_net()
    x = normalised(pixels(100))
    # Right but for the first ten.
    labels = model.predict(x, verbose=0).argmax(-1)
    labels[:10] = (labels[:10] + 1) % 5
    files = export.export_student(
        model,
        directory,
        x,
        list(FILES),
        labels=labels,
        serving=SERVING,
        calibration=normalised(pixels(50)),
        least_agreement=dict.fromkeys(INT8, 0.9),
    )
    return model, {file.format: file for file in files}, directory, labels


@pytest.mark.slow
def test_writes_all_formats_and_nothing_else(exported):
    model, files, directory, labels = exported
    assert {name: file.path.name for name, file in files.items()} == FILES
    assert sorted(os.listdir(directory)) == sorted(FILES.values())
    outputs = model.predict(normalised(pixels(100)), verbose=0)
    for name, file in files.items():
        if file.path.is_file():
            assert file.size == file.path.stat().st_size
        found = export.load(file.path)(normalised(pixels(100)))
        assert file.accuracy == (found.argmax(-1) == labels).mean()
        assert file.agreement == (
            (found.argmax(-1) == outputs.argmax(-1)).mean()
        )
        # One runtime in two processes; TensorFlow with other threads.
        assert file.max_difference == pytest.approx(
            np.abs(found - outputs).max(), abs=1e-5
        )
        assert file.max_difference < TOLERANCES[name] * np.abs(outputs).max()
        assert 0 < file.latency_p50 <= file.latency_p95
        # Batch normalisation may be folded into the weights.
        folded = model.count_params() - 3 * 6
        assert folded <= file.numbers < model.count_params() + 100
        with pytest.raises(dataclasses.FrozenInstanceError):
            file.size = 0
    for name in ("saved_model", "tflite", "tflite_float16", "onnx"):
        assert files[name].agreement == 1.0
        assert files[name].accuracy == 0.9


@pytest.mark.slow
def test_small_numbers_make_small_files(tmp_path):
    """Of many weights: two bytes each in float16, one in int8."""
    model = keras.Sequential(
        [keras.Input((64,)), layers.Dense(512, "relu"), layers.Dense(10)]
    )
    x = images(20, (64,))
    names = [name for name in FILES if name.startswith("tflite")]
    files = export.export_student(
        model,
        tmp_path,
        x,
        names,
        calibration=x,
        least_agreement=dict.fromkeys(INT8, 0.5),
    )
    kinds = zip(files, (4, 2, 1, 1), strict=True)
    for file, size in kinds:
        weights = size * (64 * 512 + 512 * 10)
        assert weights < file.size < weights + 10_000
        assert file.accuracy is None


@pytest.mark.parametrize("n", [1, 7, BATCH_SIZE + 1])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_any_batch_size_gives_the_answers_of_the_model(exported, name, n):
    model, files, *_ = exported
    predict = export.load(files[name].path)
    x = normalised(pixels(n))
    expected = model.predict(x, verbose=0)
    outputs = predict(x)
    assert outputs.dtype == np.float32
    close = {"rtol": 0, "atol": TOLERANCES[name] * np.abs(expected).max()}
    np.testing.assert_allclose(outputs, expected, **close)
    # And with another size after that.
    np.testing.assert_allclose(predict(x[:1]), expected[:1], **close)


@pytest.mark.parametrize("size", [SHAPE[:2], (31, 20), (5, 12)])
def test_serves_raw_images_of_any_size(exported, size):
    model, files, *_ = exported
    module = tf.saved_model.load(str(files["saved_model"].path))
    raw = pixels(3, (*size, 3))
    served = module.signatures["serve_images"](images=tf.constant(raw))
    resized = tf.image.resize(raw, SHAPE[:2], antialias=True)
    prepared = normalised(np.round(resized))
    outputs = model.predict(prepared, verbose=0)
    np.testing.assert_allclose(
        served["probabilities"], keras.ops.softmax(outputs), atol=1e-5
    )
    names = [name.decode() for name in served["class_names"].numpy()]
    assert names == list(SERVING.classes)
    assert [name.decode() for name in served["class_name"].numpy()] == [
        SERVING.classes[i] for i in outputs.argmax(-1)
    ]
    for name in ("serve", "serving_default"):
        (plain,) = module.signatures[name](images=prepared).values()
        np.testing.assert_allclose(plain, outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("units", [1, 3])
@pytest.mark.parametrize("probable", [False, True])
def test_serves_probabilities_of_all_heads(units, probable):
    activations = {1: "sigmoid", 3: "softmax"}
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten()])
    model.add(layers.Dense(units, activations[units] if probable else None))
    classes = ["no", "yes", "so"][: max(units, 2)]
    serving = export.Serving([100.0], [50.0], classes)
    raw = pixels(9, (2, 2, 1))
    x = ((raw - 100.0) / 50.0).astype("float32")
    serving.check(model, x)
    served = serving.endpoint(model, probable)(tf.constant(raw))
    expected = model.predict(x, verbose=0)
    assert proof.are_probabilities(expected) == probable
    if not probable:
        activation = keras.activations.get(activations[units])
        expected = keras.ops.convert_to_numpy(activation(expected))
    if units == 1:
        expected = np.concatenate([1 - expected, expected], axis=-1)
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-6)
    names = [name.decode() for name in served["class_name"].numpy()]
    assert names == [classes[i] for i in expected.argmax(-1)]


@pytest.mark.slow
@pytest.mark.parametrize("uint8_input", [False, True])
def test_full_int8_has_integers_at_its_ends(exported, tmp_path, uint8_input):
    from ai_edge_litert.interpreter import Interpreter

    model = exported[0]
    x = normalised(pixels(50))
    file, onnx = export.export_student(
        model,
        tmp_path,
        x,
        ["tflite_int8", "onnx"],
        calibration=x,
        uint8_input=uint8_input,
        least_agreement={"tflite_int8": 0.9},
    )
    interpreter = Interpreter(str(file.path))
    (source,) = interpreter.get_input_details()
    (output,) = interpreter.get_output_details()
    assert source["dtype"] == (np.uint8 if uint8_input else np.int8)
    assert output["dtype"] == np.int8
    types = {each["dtype"] for each in interpreter.get_tensor_details()}
    assert np.float32 not in types
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(
        export.load(file.path)(x), expected, atol=0.03 * np.abs(expected).max()
    )


def coarse_net():
    """Logits that differ by less than a step of int8 over their range."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    kernel, bias = model.get_weights()
    model.set_weights([kernel, bias + [1000.0, 1000.0, 0.0]])
    return model


@pytest.mark.slow
def test_a_format_that_loses_classes_fails_with_all_figures(tmp_path):
    x = images(50, (8,))
    arguments = {"formats": ["tflite", "tflite_int8"], "calibration": x}
    with pytest.raises(
        RuntimeError,
        match=r"Each file must give the answers of the Keras model. Received, "
        r"on 50 samples with outputs up to 1e\+03:\n"
        r"passed tflite: 1.2 kB, the Keras model's class for 100.00% of the "
        r"samples \(largest difference \S+\), \S+ ms a sample \(p95 \S+\); "
        r"needed: at least 99.90%, difference at most 1.0e\+00\n"
        r"FAILED tflite_int8: 1.\d kB, the Keras model's class for \d\d.00% of "
        r"the samples .*; needed: at least 98.00%\nLook for a layer",
    ):
        export.export_student(coarse_net(), tmp_path, x, **arguments)
    assert os.listdir(tmp_path) == []
    files = export.export_student(
        coarse_net(),
        tmp_path,
        x,
        **arguments,
        least_agreement={"tflite_int8": 0.1},
    )
    assert 0.1 < files[1].agreement < 0.98


@pytest.mark.parametrize("layer", ["teacher_logits", "hidden"])
@pytest.mark.parametrize("name", ["saved_model", "tflite", "onnx"])
def test_a_teacher_inside_is_found(tmp_path, name, layer):
    """By its name; by its size if it has another name."""
    inputs = keras.Input((8,))
    x = layers.Dense(3000, "relu", name=layer)(inputs)
    both = keras.Model(inputs, layers.Dense(3)(x), name="both")
    content = formats.Content(both, False, None, None, False)
    path = tmp_path / FILES[name]
    formats.FORMATS[name].write(content, path)
    held = contents.contents(path)
    contents.require_alone(name, held, both)
    with pytest.raises(
        RuntimeError,
        match=f"The {name} file must hold the network and nothing else. "
        r"Received: 3\d{4} numbers for 51 parameters, foreign names "
        + (r"\['.*teacher_logits" if layer != "hidden" else r"\[\]. Export"),
    ):
        contents.require_alone(name, held, dense_net())


def test_a_file_that_does_not_run_is_told(tmp_path, monkeypatch):
    broken = dataclasses.replace(
        formats.FORMATS["tflite"],
        write=lambda content, path: path.write_text("half a fi"),
    )
    monkeypatch.setitem(formats.FORMATS, "tflite", broken)
    with pytest.raises(
        RuntimeError,
        match="(?s)The tflite file must run in a process without Keras. "
        "Received: exit code 1. It ended with:.*ValueError",
    ):
        export.export_student(
            dense_net(), tmp_path, images(2, (8,)), ["tflite"]
        )
    assert os.listdir(tmp_path) == []


def test_saved_model_holds_each_variable_once(exported):
    model, files, *_ = exported
    checkpoint = str(files["saved_model"].path / "variables" / "variables")
    stored = tf.train.list_variables(checkpoint)
    shapes = [shape for name, shape in stored if name.endswith("VALUE")]
    assert sorted(shapes) == sorted(list(w.shape) for w in model.weights)


@pytest.mark.slow
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
@pytest.mark.slow
def test_mixed_precision_is_exported_in_float32(mixed_precision, net, tmp_path):
    policy = keras.config.dtype_policy()
    model = net()
    assert model.outputs[0].dtype == policy.compute_dtype
    x = images(7, model.input_shape[1:])
    rebuilt = inference.in_float32(model)
    assert keras.config.dtype_policy() == policy
    for layer in rebuilt._flatten_layers():
        assert layer.compute_dtype == "float32", layer

    # The same architecture and weights, in float32 from the start.
    keras.config.set_dtype_policy("float32")
    plain = net()
    plain.set_weights(model.get_weights())
    expected = plain.predict(x, verbose=0)
    assert inference.in_float32(plain) is plain
    np.testing.assert_array_equal(rebuilt.predict(x, verbose=0), expected)

    keras.config.set_dtype_policy(policy)
    for file in export.export_student(model, tmp_path, x, ["tflite"]):
        outputs = export.load(file.path)(x)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "mixed.keras")
    mixed = export.load(tmp_path / "mixed.keras")(x)
    assert mixed.dtype == np.float32
    assert 1e-5 < np.abs(mixed - expected).max() < 0.1 * np.abs(expected).max()


def test_loaded_predictor_checks_images(exported):
    for file in exported[1].values():
        predict = export.load(file.path)
        with pytest.raises(
            ValueError,
            match=r"`images` must have the shape \(N, 12, 12, 3\) with N >= 1. "
            r"Received: images.shape=\(2, 12, 12, 1\). Pass at least one",
        ):
            predict(images(2, (12, 12, 1)))


@pytest.mark.slow
def test_replaces_an_older_export(tmp_path):
    old, new = dense_net(), dense_net()
    new.set_weights([2 * w for w in old.get_weights()])
    x = images(4, (8,))
    for model, names in (
        (old, ["tflite", "saved_model"]),
        (new, ["saved_model", "tflite"]),
    ):
        for file in export.export_student(model, tmp_path, x, names):
            np.testing.assert_allclose(
                export.load(file.path)(x),
                model.predict(x, verbose=0),
                rtol=1e-4,
            )
    assert sorted(os.listdir(tmp_path)) == ["model.tflite", "saved_model"]


def broken_conversion(content, path):
    path.write_text("half a fi")
    raise RuntimeError("no such operation")


def wrong_conversion(content, path):
    wrong = keras.models.clone_model(content.model)
    wrong.set_weights([w + 1 for w in content.model.get_weights()])
    wrong.export(path, format="litert", verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "conversion, message",
    [
        (broken_conversion, "no such operation"),
        (wrong_conversion, "\nFAILED tflite: "),
    ],
)
def test_failure_leaves_the_old_export(
    tmp_path, monkeypatch, conversion, message
):
    x = images(4, (8,))
    model = dense_net()
    expected = model.predict(x, verbose=0)
    names = ["tflite_float16", "tflite"]
    files = export.export_student(model, tmp_path, x, names)
    model.set_weights([2 * w for w in model.get_weights()])
    with monkeypatch.context() as patch:
        tflite = dataclasses.replace(
            formats.FORMATS["tflite"], write=conversion
        )
        patch.setitem(formats.FORMATS, "tflite", tflite)
        with pytest.raises(RuntimeError, match=message):
            export.export_student(model, tmp_path, x, names)
    assert sorted(os.listdir(tmp_path)) == [
        "model.tflite",
        "model_float16.tflite",
    ]
    for file in files:
        outputs = export.load(file.path)(x)
        np.testing.assert_allclose(outputs, expected, rtol=1e-2, atol=1e-3)


@keras.saving.register_keras_serializable("test_export")
class Noise(layers.Layer):
    """Draws numbers at inference too, as no exported network may."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(0)

    def call(self, inputs):
        shape = keras.ops.shape(inputs)
        return inputs + keras.random.normal(shape, seed=self.seed_generator)


class OwnNoise(layers.Layer):
    """Draws numbers that Keras knows nothing of."""

    def call(self, inputs):
        return inputs + tf.random.normal(tf.shape(inputs))


@keras.saving.register_keras_serializable("test_export")
class Augmenting(keras.Model):
    """Subclassed; `forced` hard-wires the training of its dropout."""

    def __init__(self, forced=False, **kwargs):
        super().__init__(**kwargs)
        self.forced = forced
        self.flip = layers.RandomFlip()
        self.drop = layers.Dropout(0.5, name="drop")
        self.dense = layers.Dense(3)

    def call(self, inputs):
        x = layers.Flatten()(self.flip(inputs))
        x = self.drop(x, training=True) if self.forced else self.drop(x)
        return self.dense(x)


def augmenting(kind):
    """A network that is random in training and, called by itself, too."""
    flips = [layers.RandomFlip(), layers.RandomTranslation(0.4, 0.4)]
    head = [layers.Flatten(), layers.Dense(3)]
    inputs = keras.Input((4, 4, 3))
    if kind == "sequential":
        return keras.Sequential([inputs, *flips, *head])
    if kind == "nested":
        inner = keras.Sequential([inputs, *flips])
        return keras.Sequential([keras.Input((4, 4, 3)), inner, *head])
    if kind == "subclassed":
        model = Augmenting()
        model(np.zeros((1, 4, 4, 3), "float32"))
        return model
    # Keras 3.15 lets a call of inference overrule what a graph holds.
    forced = {"training": True} if kind == "forced" else {}
    x = layers.Rescaling(2.0, name="scaled")(flips[0](inputs, **forced))
    x = layers.GaussianNoise(1.0)(flips[1](x, **forced), **forced)
    return keras.Model(inputs, head[1](head[0](x)))


@pytest.mark.parametrize(
    "kind", ["functional", "sequential", "nested", "subclassed", "forced"]
)
def test_exports_do_not_augment(tmp_path, kind):
    model, x = augmenting(kind), images(9, (4, 4, 3))
    expected = model(x, training=False).numpy()
    if kind != "subclassed":  # Keras's `predict` augments without `training`
        predicted = model.predict(x, verbose=0)
        np.testing.assert_allclose(predicted, expected, atol=1e-6)
    assert np.abs(model(x) - expected).max() > 0.1
    if kind == "functional":
        with pytest.warns(UserWarning, match="same view of a sample"):
            trained = distiller(model, sensing_points=["scaled"])
        trained.export(tmp_path / "keras", verbose=False)
    wrapped = inference.in_inference_mode(model)
    assert wrapped.weights == model.weights
    np.testing.assert_allclose(wrapped(x), expected, atol=1e-6)
    content = formats.Content(wrapped, False, None, None, False)
    for name in ("saved_model", "tflite", "onnx"):
        if name == "saved_model" or kind == "functional":
            path = tmp_path / FILES[name]
            formats.FORMATS[name].write(content, path)
    for path in tmp_path.iterdir():
        found = export.load(path)(x)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def moving_statistics():
    class Moving(layers.Layer):
        def __init__(self):
            super().__init__(name="moving")
            self.norm = layers.BatchNormalization(name="norm")

        def call(self, inputs):
            return self.norm(inputs, training=True)

    return keras.Sequential([keras.Input((8,)), Moving()])


@pytest.mark.parametrize(
    "make, name",
    [
        (
            lambda: keras.Sequential([keras.Input((8,)), Noise(name="noise")]),
            "noise",
        ),
        (moving_statistics, "norm"),
        (
            lambda: keras.Sequential([keras.Input((8,)), OwnNoise(name="own")]),
            ".*own.*",
        ),
    ],
)
def test_layers_that_can_not_be_switched_off_are_refused(tmp_path, make, name):
    model = make()
    weights = model.get_weights()
    message = (
        "A network must give the same answers at every call to be exported. "
        "Received: layers that draw random numbers or change their variables "
        rf"at inference too, \['{name}'\] of '{model.name}'. Let their `call`"
    )
    with pytest.raises(ValueError, match=message):
        export.export_student(model, tmp_path, images(4, (8,)))
    assert os.listdir(tmp_path) == []
    for now, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)


def test_training_forced_inside_of_a_subclassed_network_is_refused():
    model = Augmenting(forced=True)
    model(np.zeros((1, 4, 4, 3), "float32"))
    with pytest.raises(ValueError, match=r"at inference too, \['drop'\] of"):
        inference.in_inference_mode(model)


def test_a_network_that_was_never_built_is_not_exported():
    with pytest.raises(
        ValueError,
        match="A network must be built to be exported, .* Received: 'unbuilt'",
    ):
        inference.in_inference_mode(Augmenting(name="unbuilt"))


def tagger():
    """Takes tokens and their mask, tells tags and a value of each text."""
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name)
        for name in ("token_ids", "padding_mask")
    }
    x = layers.Embedding(20, 4)(inputs["token_ids"])
    mask = layers.Reshape((-1, 1))(
        layers.Rescaling(1.0)(inputs["padding_mask"])
    )
    x = x * mask
    tags = layers.Dense(3, name="of_tags")(x)
    value = layers.Dense(1)(layers.GlobalAveragePooling1D()(x))
    return randomise(keras.Model(inputs, {"tags": tags, "value": value}))


@pytest.mark.slow
def test_several_inputs_and_outputs_by_name(tmp_path):
    model = tagger()
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 20, (9, 6), "int32")
    mask = (np.arange(6) < rng.integers(1, 7, (9, 1))).astype("int32")
    x = {"token_ids": tokens, "padding_mask": mask}
    expected = model.predict(x, verbose=0)
    names = ["saved_model", "tflite"]
    task = {"tags": "single_label", "value": "regression"}
    files = export.export_student(model, tmp_path, x, names, task=task)
    for file in files:
        predict = export.load(file.path)
        # One batch and another length.
        for count, length in ((9, 6), (2, 3)):
            given = {key: each[:count, :length] for key, each in x.items()}
            found = predict(given)
            known = model.predict(given, verbose=0)
            assert set(found) == {"tags", "value"}
            for name, values in found.items():
                np.testing.assert_allclose(values, known[name], atol=1e-5)
        assert list(file.outputs) == ["tags", "value"]
        assert file.agreement == 1.0
        for name, output in file.outputs.items():
            assert output.task == task[name]
            assert output.scale == pytest.approx(np.abs(expected[name]).max())
        assert re.search(
            r"'tags': the Keras model's class for 100.00% of .*, 'value': the "
            "Keras model's values for 100.00% of the samples",
            str(file),
        )
    runner = tf.saved_model.load(str(files[0].path)).signatures["serve"]
    assert set(runner.structured_outputs) == {"tags", "value"}


def test_lists_of_ends_are_numbered(tmp_path):
    """Two images in, two heads out, one of them worse in full int8."""
    inputs = [keras.Input((2,)), keras.Input((2,))]
    x = layers.Dense(4, "relu")(inputs[0] + 2.0 * inputs[1])
    model = keras.Model(inputs, [layers.Dense(3)(x), layers.Dense(2)(x)])
    x = [images(20, (2,)), images(21, (2,))[1:]]
    expected = model.predict(x, verbose=0)
    file, onnx = export.export_student(
        model,
        tmp_path,
        x,
        ["tflite_int8", "onnx"],
        calibration=x,
        least_agreement={"tflite_int8": 0.5},
    )
    found, exact = export.load(file.path)(x), export.load(onnx.path)(x)
    for i, values in enumerate(expected):
        atol = 0.05 * np.abs(values).max()
        np.testing.assert_allclose(found[f"output_{i}"], values, atol=atol)
        np.testing.assert_allclose(exact[f"output_{i}"], values, atol=1e-5)
        difference = np.abs(found[f"output_{i}"] - values).max()
        compared = file.outputs[f"output_{i}"]
        assert compared.max_difference == pytest.approx(difference, abs=1e-6)
    differences = [each.max_difference for each in file.outputs.values()]
    assert file.max_difference == max(differences)


def test_a_wrong_head_fails_though_the_other_is_larger():
    small = np.array([[1.0, 2.0], [2.0, 1.0]], "float32")
    agreements = {
        "large": proof.compare(1e4 * small, 1e4 * small, "single_label"),
        "small": proof.compare(small + 0.1, small, "single_label"),
    }
    file = export.ExportedModel(
        "tflite", "a", 1, 1, agreements, 0.1, 1.0, None, 0.1, 0.1
    )
    with pytest.raises(
        RuntimeError,
        match=r"(?s)outputs up to 2e\+04, 2:\nFAILED tflite: .*difference at "
        r"most 2.0e\+01, 2.0e-03\n.* Name the `task` of outputs",
    ):
        student._require_agreement([file], 2, 1e-3, {"tflite": 0.9})


@pytest.mark.parametrize(
    "task, found, expected, agreement",
    [
        # Best class at each position.
        ("single_label", [[[1, 2], [2, 1]]], [[[0, 1], [0, 1]]], 0.5),
        ("single_label", [-1.0, 2.0, 3.0, -1.0], [-2.0, 1.0, -1.0, -1.0], 0.75),
        # Each label by its own sign, or by half if all are probabilities.
        ("multi_label", [[3, -1, 2], [1, 1, 1]], [[1, -2, 3], [1, 1, -1]], 0.5),
        ("multi_label", [[0.4, 0.9]], [[0.3, 0.8]], 1.0),
        ("multi_label", [[0.6, 0.9]], [[0.3, 0.8]], 0.0),
        # All values within 5 % of the largest, whatever their signs.
        ("regression", [0.4, -0.4, 10.0], [-0.05, 0.05, 10.0], 1.0),
        ("regression", [[1.0, 10.0], [2.0, 3.0]], [[1, 10], [1, 3]], 0.5),
        ("embedding", [[1.0, 1.1]], [[1.1, 1.0]], 0.0),
        ("embedding", [[1.0, 1.02]], [[1.02, 1.0]], 1.0),
    ],
)
def test_what_agrees(task, found, expected, agreement):
    found, expected = np.float32(found), np.float32(expected)
    compared = proof.compare(found, expected, task)
    assert compared.agreement == agreement
    assert compared.scale == np.abs(expected).max()
    assert compared.max_difference == np.abs(found - expected).max()


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
            "`formats` must be one of saved_model, tflite, tflite_float16, "
            "tflite_dynamic_int8, tflite_int8, onnx. Received: "
            "formats='tflit'. Did you mean 'tflite'",
        ),
        ("tflite", "Received: formats='t'"),
        ([], "`formats` must be one of saved_model, .*, onnx. Received"),
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


GRAY = np.zeros((2, 12, 12, 3), "float32")  # pixels of the means


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"formats": ["tflite_int8"]},
            "`calibration` must hold training images where `formats` has "
            "tflite_int8, and .* Received: none, a network that takes float32.",
        ),
        (
            {"formats": ["tflite_int8"], "calibration": GRAY[:, 1:]},
            r"`calibration` must have the shape \(N, 12, 12, 3\) with N >= 1. "
            r"Received: calibration.shape=\(2, 11, 12, 3\)",
        ),
        (
            {"least_agreement": {"tflit": 0.9}},
            "`least_agreement` must be one of saved_model, .*'tflite'",
        ),
        (
            {"least_agreement": {"tflite": 98}},
            "`least_agreement` must hold fractions from 0 to 1. Received: 98 "
            "for tflite. Pass 0.98",
        ),
        (
            {"labels": [0, 1, 2]},
            "`labels` must hold an integer for each of the 2 images, and the "
            r"network .* Received: int64 of shape \(3,\), a network with",
        ),
        ({"labels": [0.0, 1.0]}, "Received: float64 of shape"),
        (
            {"labels": [0, 1], "task": "regression"},
            r"outputs of shape \(None, 5\) and the task regression. Leave",
        ),
        (
            {"task": "clasification"},
            "`task` must be one of single_label, multi_label, regression",
        ),
        (
            {"task": {"head": "regression"}},
            r"`task` must be a name, or a dict with one for each output of the "
            r"network, \['output_0'\]. Received: task={'head'",
        ),
        (
            {"serving": dataclasses.replace(SERVING, classes=["a", "b"])},
            "`serving` must fit a network .* Received: 3 means, 3 deviations, "
            r"2 classes, a network from \(12, 12, 3\) to \(5,\). Take them",
        ),
        ({"serving": dataclasses.replace(SERVING, mean=[1])}, "1 means, 3 dev"),
        (
            {"serving": dataclasses.replace(SERVING, std=[1, 0, 1])},
            "must fit a network",
        ),
        (
            {"serving": dataclasses.replace(SERVING, mean=[0.5, 0.5, 0.5])},
            "`images` must be uint8 images, normalised with the mean and "
            "deviation of `serving`. Received: images that no pixels",
        ),
    ],
)
def test_arguments_that_do_not_fit(tmp_path, no_conversion, arguments, message):
    with pytest.raises(ValueError, match=message):
        export.export_student(conv_net(), tmp_path, GRAY, **arguments)


def test_integers_can_not_be_quantized(tmp_path, no_conversion):
    words = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(9, 4),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    x = np.zeros((2, 4), "int32")
    with pytest.raises(ValueError, match="a network that takes int32"):
        export.export_student(
            words, tmp_path, x, ["tflite_int8"], calibration=x
        )


def test_a_missing_extra_is_told(tmp_path, no_conversion, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tf2onnx", None)
    with pytest.raises(
        ImportError,
        match="The format onnx must have the packages of the extra onnx. "
        r"Received: an environment without .* `pip install 'keras-mhgd\[onnx",
    ):
        export.export_student(conv_net(), tmp_path, GRAY, ["onnx"])


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


def nested_outputs():
    inputs = keras.Input((2,))
    return keras.Model(inputs, {"heads": [inputs + 1, inputs + 2]})


def one_of(**kwargs):
    return keras.Sequential([keras.Input(**kwargs), layers.Flatten()])


@pytest.mark.parametrize(
    "make",
    [
        nested_outputs,
        lambda: one_of(shape=(2,), dtype="uint8"),
        lambda: one_of(shape=(2,), batch_size=4),
        lambda: keras.Sequential([layers.Dense(2)]),
        Subclassed,
    ],
)
def test_other_models_are_refused(tmp_path, no_conversion, make):
    with pytest.raises(
        ValueError,
        match="(?s)`model` must be a built model, its inputs floats or "
        "integers of any batch size, its inputs and its outputs each a tensor, "
        "a list or a dict of tensors. Received: "
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
    found = proof.best_classes(np.array(outputs), probable)
    np.testing.assert_array_equal(found, expected)
