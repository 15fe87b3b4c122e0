"""Measures the accuracy of a trained network, from a file of any format.

%s --dataset=glyphs
    --model=saved_models/student/model.tflite
"""

from absl import flags

import keras_mhgd
from keras_mhgd._program import without_log

from . import commands, options
from .saved.results import measure
from .saved.trained import network_file

options.define_data()
flags.DEFINE_string(
    "model",
    None,
    "Run folder, .keras file, SavedModel folder, .tflite or .onnx file.",
)
flags.mark_flag_as_required("model")
FLAGS = flags.FLAGS


def main(argv) -> None:
    """Prints the accuracy of the network that the flags name."""
    with without_log():
        predict = keras_mhgd.export.load(network_file(FLAGS.model))
    dataset = options.load_data()
    accuracy = measure(predict, dataset)
    part = "held-out training" if FLAGS.validation_split else "test"
    print(
        f"{FLAGS.model}: accuracy {accuracy:.4f} on {len(dataset.x_test)} "
        f"{part} {dataset.kind} of {dataset.name}."
    )


if __name__ == "__main__":
    commands.run(main)
