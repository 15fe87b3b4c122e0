"""Tells the training views that this process is given, by their hashes.

python -m tests.data.viewing <devices> <folder of images>

With TF_CONFIG it is one of several workers. It prints an object for each kind.
"""

import functools
import hashlib
import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from benchmarks.correctness.devices import strategy_of
from keras_mhgd.data import Dataset, Files, Mixing, RandomResizedCrop
from keras_mhgd.distribution import Shared, fitting, replicas

layers = keras.layers
BATCH, EPOCHS, SEED = 8, 2, 5
COUNT = 19  # the last of three batches is smaller

AUGMENTATIONS = {
    "none": lambda: "none",
    "crop": lambda: "crop",
    "standard": lambda: "standard",
    "strong": lambda: "strong",
    "random resized crop": lambda: RandomResizedCrop(12, 10),
    "mirror": lambda: layers.RandomFlip("horizontal"),
    "colour": lambda: layers.RandomColorJitter(
        (0, 255), 0.2, 0.4, (0.3, 0.7), 0.1
    ),
    "RandAugment": lambda: layers.RandAugment(),
    "random erasing": lambda: layers.RandomErasing(0.5),
    "MixUp": lambda: "crop",
    "CutMix": lambda: "crop",
    "own": lambda: keras.Sequential(
        [
            layers.RandomRotation(0.1),
            layers.RandomZoom(0.2),
            layers.Dropout(0.1),
        ]
    ),
}
MIXINGS = {
    "MixUp": Mixing(cutmix_alpha=None),
    "CutMix": Mixing(mixup_alpha=None),
}


def write_images(folder: pathlib.Path) -> None:
    """Writes JPEG files of several sizes."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        shape = 16 + number % 3, 24 - number % 5, 3
        image = rng.integers(0, 256, shape, np.uint8)
        path = folder / f"{number:02}.jpg"
        path.write_bytes(tf.io.encode_jpeg(image).numpy())


@functools.cache
def images(folder: pathlib.Path) -> Dataset:
    """Images that are read when they are needed."""
    x = Files(sorted(folder.glob("*.jpg")), (16, 16))
    y = np.arange(COUNT, dtype=np.int32)
    return Dataset("set", x, y, x, y, tuple(map(str, y)), flip=True, padding=2)


def dataset_of(folder: pathlib.Path, kind: str) -> Dataset:
    """The images with views of a kind."""
    return images(folder).augmented(
        AUGMENTATIONS[kind](), mixing=MIXINGS.get(kind)
    )


def hashes(batch: tuple) -> dict[str, str]:
    """Hashes each sample of a batch, by its epoch and its position."""
    parts, epochs, positions = keras.tree.map_structure(np.asarray, batch)
    return {
        f"{epoch} {position}": hashlib.sha256(
            b"".join(np.ascontiguousarray(each[row]).data for each in parts)
        ).hexdigest()
        for row, (epoch, position) in enumerate(
            zip(epochs, positions, strict=True)
        )
    }


class Watched(keras.Model):
    """Notes the samples of its steps, and learns nothing."""

    def train_step(self, batch):
        def note(*flat):
            self.seen |= hashes(keras.tree.pack_sequence_as(batch, flat))

        tf.py_function(note, keras.tree.flatten(batch), [])
        self._loss_tracker.update_state(0.0)
        return self.get_metrics_result()


def main(devices: str, folder: str) -> None:
    strategy = strategy_of(devices)
    for kind in AUGMENTATIONS:
        dataset = dataset_of(pathlib.Path(folder), kind)
        with strategy.scope():
            model = Watched()
            model.built, model.seen = True, {}
            model.compile("sgd")
        stream = functools.partial(dataset.train_with_places, BATCH, SEED)
        fitting.fit(
            model,
            Shared(lambda share, stream=stream: stream(share=share)),
            epochs=EPOCHS,
            steps_per_epoch=dataset.steps_per_epoch(BATCH),
            shuffle=False,
            verbose=0,
        )
        print(json.dumps({kind: model.seen}))
    with strategy.scope():
        replicas.wait_for_workers()


if __name__ == "__main__":
    main(*sys.argv[1:])
