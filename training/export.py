"""Writes a trained network as SavedModel and TFLite, checked on test images.

python -m training.export --dataset=glyphs --model=runs/mhgd
    --out=saved_models/student
"""

from absl import app, flags

import keras_mhgd
from training import options
from training.networks import load_network
from training.results import describe

options.define_data()
flags.DEFINE_string("model", None, "Run folder or .keras file.")
flags.DEFINE_list(
    "formats", ["saved_model", "tflite"], "Any of saved_model, tflite."
)
flags.DEFINE_string(
    "out", None, "Folder to write to, such as saved_models/student."
)
options.define_positive(
    "check_images", 1000, "Test images on which the files are compared."
)
flags.mark_flags_as_required(["model", "out"])
FLAGS = flags.FLAGS


def main(argv) -> None:
    """Exports the network that the flags name."""
    network = load_network(FLAGS.model)
    dataset = options.load_data()
    images = dataset.normalise(dataset.x_test[: FLAGS.check_images])
    files = keras_mhgd.export.export_student(
        network, FLAGS.out, images, FLAGS.formats
    )
    print(describe(files, len(images)))


if __name__ == "__main__":
    app.run(main)
