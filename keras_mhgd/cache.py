"""The teacher's features, computed once for all epochs."""

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.data import Dataset
from keras_mhgd.distiller import Distiller
from keras_mhgd.features import Features, Taught


class TeacherCache:
    """Runs the teacher once over a fixed number of views of each image.

    Augmentation depends on (seed, view, image) alone, so what is kept belongs
    to the very images that the student sees: training with the cache ends
    with the same weights as training without. What is kept is what the method
    reads (`Method.targets`), in memory: for MHGD a few vectors an image and
    view, for a method on whole feature maps a thousand times as much.

    Args:
        distiller: A `keras_mhgd.Distiller`: its teacher and its method.
        dataset: The data.
        batch_size: Images in a batch.
        views: Augmented views of each image, >= 1.
        seed: Seed of order and augmentation.

    Raises:
        ValueError: If the method trains the teacher along.

    Example:
        >>> dataset = keras_mhgd.data.load("glyphs", subset=200)
        >>> student, teacher = (
        ...     keras_mhgd.models.get("resnet_small", (28, 28, 1), 100)
        ...     for _ in range(2)
        ... )
        >>> distiller = keras_mhgd.Distiller(student, teacher, "kd_svd")
        >>> distiller.compile(
        ...     "sgd",
        ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ... )
        >>> cache = keras_mhgd.TeacherCache(
        ...     distiller, dataset, batch_size=64, views=2
        ... )
        >>> history = distiller.fit(
        ...     cache.train(),
        ...     epochs=3,
        ...     steps_per_epoch=4,
        ...     shuffle=False,
        ...     verbose=0,
        ... )
    """

    def __init__(
        self,
        distiller: Distiller,
        dataset: Dataset,
        batch_size: int,
        views: int,
        seed: int = 0,
    ):
        if distiller.method.teacher_learns:
            raise ValueError(
                "`distiller` must have a frozen teacher: the features of one "
                "that learns change with every step. Received: the method "
                f"{distiller.method.name!r}. Train without a cache."
            )
        self._dataset = dataset
        self._stream = {"batch_size": batch_size, "seed": seed, "views": views}
        batches = dataset.train_with_places(**self._stream)
        count = views * dataset.steps_per_epoch(batch_size)
        targets = tf.function(
            lambda images: _known(distiller.targets(images)),
            input_signature=batches.element_spec[:1],
        )
        size = views, len(dataset.x_train)
        self._kept = None
        for images, _, view, positions in batches.take(count):
            found = targets(images)
            if self._kept is None:
                self._kept = keras.tree.map_structure(
                    lambda each: np.empty(
                        (*size, *each.shape[1:]), each.dtype.as_numpy_dtype
                    ),
                    found,
                )
            for kept, each in zip(
                keras.tree.flatten(self._kept),
                keras.tree.flatten(found),
                strict=True,
            ):
                kept[int(view), positions.numpy()] = each

    def train(self, initial_epoch: int = 0) -> tf.data.Dataset:
        """Streams `dataset.train(batch_size, seed, views=views)`, taught.

        Args:
            initial_epoch: Epoch that the stream starts with, from 0.

        Returns:
            `tf.data.Dataset` of `Taught` and labels, without end.
        """
        with tf.device("CPU:0"):
            kept = keras.tree.map_structure(tf.constant, self._kept)

        def teach(images, labels, view, positions):
            targets = keras.tree.map_structure(
                lambda each: tf.gather(each[view], positions), kept
            )
            return Taught(images, targets), labels

        return self._dataset.train_with_places(
            initial_epoch=initial_epoch, **self._stream
        ).map(teach, num_parallel_calls=tf.data.AUTOTUNE)


def _known(features: Features) -> dict:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in features._asdict().items()
        if value is not None
    }
