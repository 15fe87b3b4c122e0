"""Exports a trained network for deployment and checks it on test samples.

%s --dataset=glyphs --model=runs/mhgd
    --teacher=vgg_small_glyphs --alone=runs/alone
    --formats=saved_model,tflite,tflite_int8,onnx --out=saved_models/student

The folder also gets the measurements (`export.json`), a model card
(`README.md`), and a picture of accuracy against size and latency
(`accuracy.png`).
"""

import dataclasses
import json
import math
import pathlib
import tempfile

import keras
import numpy as np
from absl import app, flags

import keras_mhgd
from keras_mhgd._program import without_log
from keras_mhgd.export import ExportedModel, Serving, export_student
from keras_mhgd.storage.files import write_atomically

from . import commands, options
from .messages import closing
from .reports import pictures
from .reports.machine import machine
from .reports.model_card import card
from .saved.results import read_result
from .saved.trained import load_network

options.define_data()
flags.DEFINE_string("model", None, "Run folder or .keras file.")
flags.DEFINE_list(
    "formats",
    ["saved_model", "tflite"],
    f"Formats of the files. Any of {', '.join(keras_mhgd.export.names())}.",
)
flags.DEFINE_string(
    "out", None, "Folder to write to, such as saved_models/student."
)
flags.DEFINE_string(
    "teacher",
    None,
    "Teacher to compare with. A run folder or .keras file.",
)
flags.DEFINE_string(
    "alone",
    None,
    "Student without a teacher, to compare with. A run folder or .keras file.",
)
options.define_positive(
    "calibration_images",
    2000,
    "Training samples that set the scales of tflite_int8, at most.",
)
flags.DEFINE_boolean(
    "uint8_input",
    False,
    "Let tflite_int8 take uint8, of normalised images, instead of int8.",
)
flags.DEFINE_multi_string(
    "least_agreement",
    [],
    "Least agreement with the Keras model, such as tflite_int8=0.97. It is the "
    "fraction of test samples that keep their class in a format. May be given "
    "several times.",
)
flags.mark_flags_as_required(["model", "out"])
FLAGS = flags.FLAGS
_MOST_BYTES = 2**30


def main(argv) -> None:
    """Exports the network that the flags name."""
    if FLAGS.validation_split:
        raise app.UsageError(
            "--validation_split is for choosing settings. An export must be "
            "without it: the model card tells the accuracy on the test "
            f"samples. Received: {FLAGS.validation_split}. Leave it out."
        )
    least = dict(map(_fraction, FLAGS.least_agreement))
    network = load_network(FLAGS.model)
    others = {
        name: load_network(path)
        for name, path in (
            ("teacher", FLAGS.teacher),
            ("student alone", FLAGS.alone),
        )
        if path
    }
    dataset = options.load_data()
    tested = _tested(dataset)
    images = dataset.normalise(dataset.x_test[tested])
    labels = dataset.y_test[tested]
    compared = {
        name: _float32(other, images, labels) for name, other in others.items()
    }
    count = min(FLAGS.calibration_images, len(dataset.x_train))
    of_words = isinstance(dataset, keras_mhgd.data.Tokens)
    serving = Serving(dataset.mean, dataset.std, dataset.classes)
    with without_log():
        files = export_student(
            network,
            FLAGS.out,
            images,
            FLAGS.formats,
            labels=labels,
            # The signature for raw inputs takes images.
            serving=None if of_words else serving,
            calibration=dataset.normalise(dataset.take(count).x_train[:]),
            uint8_input=FLAGS.uint8_input,
            least_agreement=least,
        )
    _write(network, dataset, len(images), files, compared)
    print(*files, sep="\n")
    for name, file in compared.items():
        print(
            f"For comparison, the {name} as a float32 .tflite file: "
            f"{file.size / 1000:.1f} kB, accuracy {file.accuracy:.2%}"
        )
    print(f"Model card: {FLAGS.out}/README.md")
    data = {name: FLAGS[name].value for name in closing.DATA}
    smallest = min(files, key=lambda file: file.size)
    print(
        closing.next_steps(
            ("evaluate", closing.given(data, *data) | {"model": smallest.path})
        )
    )


def _tested(dataset: keras_mhgd.data.Dataset) -> np.ndarray:
    """Picks test samples: all, or as many, spread evenly, as take 1 GB."""
    size = len(dataset.x_test)
    most = _MOST_BYTES // (4 * math.prod(dataset.input_shape))
    count = min(size, max(1, most))
    return np.linspace(0, size - 1, count).round().astype(int)


def _fraction(text: str) -> tuple[str, float]:
    name, _, fraction = text.partition("=")
    try:
        return name, float(fraction)
    except ValueError as error:
        raise app.UsageError(
            "--least_agreement must be format=fraction, such as "
            f"tflite_int8=0.97. Received: --least_agreement={text}."
        ) from error


def _float32(
    network: keras.Model, images: np.ndarray, labels: np.ndarray
) -> ExportedModel:
    """Measures another network as a temporary float32 TFLite file."""
    with tempfile.TemporaryDirectory() as folder:
        (file,) = export_student(
            network, folder, images, ["tflite"], labels=labels
        )
    return file


def _write(
    network: keras.Model,
    dataset: keras_mhgd.data.Dataset,
    test_images: int,
    files: list[ExportedModel],
    compared: dict[str, ExportedModel],
) -> None:
    """Writes `export.json`, `README.md` and `accuracy.png`."""
    directory = pathlib.Path(FLAGS.out)
    facts = {
        "network": network.name,
        "parameters": network.count_params(),
        "run": read_result(FLAGS.model),
        "dataset": pathlib.Path(dataset.name).name,  # the name may be a path
        "test_images": test_images,
        "input_shape": dataset.input_shape,
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "classes": dataset.classes,
        "tokens": getattr(dataset, "tokens", None),
        "files": [_plain(file) for file in files],
        "compared": {name: _plain(file) for name, file in compared.items()},
        "machine": machine(threads=1),
    }
    write_atomically(
        directory / "export.json",
        json.dumps(facts, indent=2, ensure_ascii=False),
    )
    write_atomically(directory / "README.md", card(facts))
    points = {file.format: file for file in files}
    points |= {f"{name}, tflite": file for name, file in compared.items()}
    pictures.save(
        directory / "accuracy.png",
        pictures.deployment(points, f"{network.name} on {facts['dataset']}"),
    )


def _plain(file: ExportedModel) -> dict:
    """Gives a file's figures as JSON values, with its name for its path."""
    return dataclasses.asdict(file) | {"path": file.path.name}


if __name__ == "__main__":
    commands.run(main)
