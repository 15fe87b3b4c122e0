"""Measures a trained network on a test set, whatever file it comes from.

python -m training.evaluate --dataset=glyphs
    --model=saved_models/student/model.tflite
"""

from absl import app, flags

import keras_mhgd
from training import options
from training.run import network_file

options.define_data()
flags.DEFINE_string(
    "model", None, "Run folder, .keras file, SavedModel folder or .tflite file."
)
flags.mark_flag_as_required("model")
FLAGS = flags.FLAGS


def main(argv) -> None:
    """Prints the accuracy of the network that the flags name."""
    predict = keras_mhgd.export.load(network_file(FLAGS.model))
    dataset = options.load_data()
    accuracy = measure(predict, dataset)
    print(
        f"{FLAGS.model}: accuracy {accuracy:.4f} on {len(dataset.x_test)} "
        f"test images of {dataset.name}."
    )


def measure(
    predict: keras_mhgd.export.Predictor, dataset: keras_mhgd.data.Dataset
) -> float:
    """Computes the fraction of test images that a network gets right.

    Raises:
        ValueError: If its outputs are not one for each class.
    """
    outputs = predict(dataset.normalise(dataset.x_test))
    if outputs.shape[1:] != (dataset.num_classes,):
        raise ValueError(
            f"The network must have one output for each of the "
            f"{dataset.num_classes} classes of {dataset.name}. "
            f"Received: outputs of shape {outputs.shape[1:]}."
        )
    return float((outputs.argmax(axis=-1) == dataset.y_test).mean())


if __name__ == "__main__":
    app.run(main)
