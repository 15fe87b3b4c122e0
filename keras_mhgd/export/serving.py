"""Makes the signature by which a SavedModel serves raw images."""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.data.images import resize
from keras_mhgd.export.inference import in_structure, named_inputs


@dataclasses.dataclass(frozen=True)
class Serving:
    """Holds the data of the signature `serve_images` of a SavedModel.

    The signature takes uint8 images `(batch, height, width, channels)` of any
    size. It resizes them to the network's input size (bilinear, antialiased)
    and normalises them. It gives `probabilities` `(batch, classes)`, float32,
    the `class_name` of the largest probability, string `(batch,)`, and all
    `class_names`, string `(classes,)`.

    Args:
        mean: Mean of each channel, 0..255, as in training.
        std: Standard deviation of each channel, 0..255, > 0.
        classes: Name of each class, in the order of the outputs. For a network
            with one output, the names of the two classes that it separates.

    Example:
        >>> glyphs = keras_mhgd.data.load("glyphs")
        >>> serving = keras_mhgd.export.Serving(
        ...     glyphs.mean, glyphs.std, glyphs.classes
        ... )
        >>> int(serving.pixels(glyphs.normalise(glyphs.x_test)).max())
        255
    """

    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]

    def check(self, model: keras.Model, images: np.ndarray) -> None:
        """Checks that a network and its images fit the signature.

        Args:
            model: A functional network.
            images: Its inputs: normalised images `(count, height, width,
                channels)`, floating point.

        Raises:
            ValueError: If the network does not take images of one fixed size
                with a channel for each entry of `mean` and `std`, if its
                outputs do not fit `classes`, or if a deviation is not positive.
                Also if the images are not uint8 images that were normalised
                with `mean` and `std`.
        """
        takes = [source.shape[1:] for source in model.inputs]
        gives = [output.shape[1:] for output in model.outputs]
        shape, outputs = takes[0], gives[0]
        channels = len(self.mean)
        fits = (
            len(takes) == len(gives) == 1
            and len(shape) == 3
            and None not in shape
            and shape[2] == channels == len(self.std)
            and min(self.std) > 0
            and len(outputs) == 1
            and len(self.classes) == max(outputs[0], 2)
        )
        if not fits:
            raise ValueError(
                "`serving` must fit a network of images of one size and as "
                "many channels as it has means and deviations (> 0), with an "
                f"output for each class. Received: {channels} means, "
                f"{len(self.std)} deviations, {len(self.classes)} classes, a "
                f"network from {', '.join(map(str, takes))} to "
                f"{', '.join(map(str, gives))}. "
                "Take them from the data that it was trained on."
            )
        mean, factor = self._mean_and_factor()
        again = (self.pixels(images) - mean) * factor
        if np.abs(again - images).max() > 1e-3:
            raise ValueError(
                "`images` must be uint8 images, normalised with the mean and "
                "deviation of `serving`. Received: images that no pixels 0 to "
                "255 give. Pass (images - mean) / std."
            )

    def pixels(self, images: np.ndarray) -> np.ndarray:
        """Turns normalised images back into uint8.

        Args:
            images: Normalised images `(..., channels)`, floating point.

        Returns:
            uint8 array of the same shape, 0..255.
        """
        mean, factor = self._mean_and_factor()
        return (images / factor + mean).round().clip(0, 255).astype("uint8")

    def _mean_and_factor(self) -> tuple[np.ndarray, np.ndarray]:
        """Gives the mean to subtract, and the factor to multiply by then."""
        return np.float32(self.mean), 1 / np.float32(self.std)

    def endpoint(self, model: keras.Model, probable: bool) -> Callable:
        """Makes the function of the signature.

        Args:
            model: The network.
            probable: Whether the network gives probabilities, not logits.

        Returns:
            A function from images to a dict of three tensors.
        """
        size = model.inputs[0].shape[1:3]
        (source,) = named_inputs(model)
        mean, factor = self._mean_and_factor()

        def serve_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
            images = tf.cast(resize(images, size), "float32")
            images = (images - mean) * factor
            outputs = model(in_structure(model, {source: images}))
            (outputs,) = keras.tree.flatten(outputs)
            probabilities = as_probabilities(outputs, probable)
            names = tf.constant(list(self.classes))
            return {
                "probabilities": probabilities,
                "class_name": tf.gather(names, tf.argmax(probabilities, -1)),
                "class_names": names,
            }

        return serve_images


def as_probabilities(outputs: tf.Tensor, probable: bool) -> tf.Tensor:
    """Turns outputs into probabilities of all classes.

    A single output gives the probabilities of two classes.
    """
    if outputs.shape[-1] > 1:
        return outputs if probable else tf.nn.softmax(outputs)
    second = outputs if probable else tf.sigmoid(outputs)
    return tf.concat([1 - second, second], axis=-1)
