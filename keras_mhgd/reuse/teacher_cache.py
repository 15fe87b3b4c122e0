"""Caches the teacher's features for all epochs and all runs."""

import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.lib.format import open_memmap

from keras_mhgd.checks import require_known
from keras_mhgd.data import Dataset
from keras_mhgd.data.dataset import Share
from keras_mhgd.distiller import Distiller
from keras_mhgd.distribution import replicas
from keras_mhgd.features import Features, Taught
from keras_mhgd.storage.arrays import map_array
from keras_mhgd.storage.files import (
    read_json,
    replacing,
    require_writable,
    write_atomically,
)

_FORMAT = 1
_DTYPES = ("float32", "float16")


class TeacherCache:
    """Runs the teacher once over a fixed number of views of each image.

    Augmentation depends on (seed, view, image) alone, so the cached features
    belong to the very images that the student sees. Training with the cache
    ends with the same weights as training without it. The cache holds the
    features that the method reads (`Method.targets`). For MHGD these are a few
    vectors for each image and view. For a method on whole feature maps they are
    a thousand times as large.

    In a folder, each feature is an `.npy` file that is mapped into memory.
    Other runs and other methods with the same teacher, images, views and seed
    use the files as well. Features that they need in addition are added.

    Args:
        distiller: The `keras_mhgd.Distiller` with the teacher and the method.
        dataset: The data.
        batch_size: Images in a batch.
        views: Augmented views of each image, >= 1.
        seed: Seed of order and augmentation.
        directory: Folder of the files. If `None`, features are in memory.
        dtype: `"float32"`, or `"float16"` for half the size and rounded
            features.

    Raises:
        ValueError: If the method also trains the teacher, if the student
            augments its inputs, or if the folder holds features of another
            teacher, other data, or another format.
        OSError: If the folder can't be written.

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
        directory: str | os.PathLike | None = None,
        dtype: str = "float32",
    ):
        require_known("dtype", dtype, _DTYPES)
        several = len(distiller.teachers) > 1
        if distiller.trains_teacher:
            raise ValueError(
                "`distiller` must have a frozen teacher: the features of one "
                "that learns change with every step. Received: the methods "
                f"{[each.name for each in distiller.methods]}. Train without "
                "a cache."
            )
        if distiller.augments:
            raise ValueError(
                "`distiller` must have a student that does not augment: each "
                "step it would show the teacher another view. Received: "
                f"{distiller.student.name!r}, which starts with random layers. "
                "Leave them out of the student, and augment the data."
            )
        self._dataset = dataset
        self._stream = {"batch_size": batch_size, "seed": seed, "views": views}
        self._targets = tf.function(
            lambda images: _all_known(distiller.targets(images)),
            input_signature=self._batches().element_spec[0][:1],
        )
        found = self._targets.get_concrete_function().structured_outputs
        points = distiller.sensing_points
        self._names = (
            tuple(
                _names(each, [theirs for _, theirs in of_it], f"{number}.")
                for number, (each, of_it) in enumerate(
                    zip(found, points, strict=True)
                )
            )
            if several
            else _names(found, [theirs for _, theirs in points])
        )
        specs = {
            name: (
                (views, len(dataset.x_train), *each.shape[1:]),
                dtype if each.dtype.is_floating else each.dtype.name,
            )
            for name, each in self._by_name(found).items()
        }
        if directory is None:
            self._kept = {
                name: np.empty(shape, kind)
                for name, (shape, kind) in specs.items()
            }
            self._fill(self._kept)
            return
        directory = require_writable(directory)
        files = {
            name: directory / f"{name}.{kind}.npy"
            for name, (_, kind) in specs.items()
        }
        if replicas.is_chief():
            _require_own(
                directory / "manifest.json",
                {
                    "format": _FORMAT,
                    "teacher": fingerprint(
                        *(
                            weights
                            for teacher in distiller.teachers
                            for weights in teacher.get_weights()
                        )
                    ),
                    "data": fingerprint_of(dataset),
                    "views": views,
                    "seed": seed,
                },
            )
            self._write(files, specs)
        replicas.wait_for_workers()
        self._kept = {
            name: _mapped(path, *specs[name]) for name, path in files.items()
        }

    def train(
        self,
        initial_epoch: int = 0,
        initial_step: int = 0,
        share: Share | None = None,
    ) -> tf.data.Dataset:
        """Streams the training data with the teacher's features.

        The images are those of `dataset.train(batch_size, seed, views=views)`.

        Args:
            initial_epoch: Epoch that the stream starts with, from 0.
            initial_step: Batches of the first epoch that are left out.
            share: As in `Dataset.train`.

        Returns:
            Endless `tf.data.Dataset` of `Taught` and labels.
        """
        dtypes = [
            tf.float32 if each.dtype.kind == "f" else tf.as_dtype(each.dtype)
            for each in self._kept.values()
        ]

        def read(views, positions):
            # Only these rows of a mapped file are read.
            return [
                each[views, positions].astype(dtype.as_numpy_dtype)
                for each, dtype in zip(self._kept.values(), dtypes, strict=True)
            ]

        def teach(batch, views, positions):
            images, *labels = batch
            rows = tf.numpy_function(
                read, [views, positions], dtypes, stateful=False
            )
            found = {}
            for (name, whole), row in zip(
                self._kept.items(), rows, strict=True
            ):
                shape = positions.shape[0], *whole.shape[2:]
                found[name] = tf.ensure_shape(row, shape)
            taught = keras.tree.map_structure(found.get, self._names)
            return Taught(images, taught), *labels

        return self._batches(
            initial_epoch=initial_epoch, initial_step=initial_step, share=share
        ).map(teach, num_parallel_calls=tf.data.AUTOTUNE)

    def _batches(self, **place: Any) -> tf.data.Dataset:
        return self._dataset.train_with_places(**self._stream, **place)

    def _by_name(self, found: dict[str, Any]) -> dict[str, tf.Tensor]:
        names = keras.tree.flatten(self._names)
        return dict(zip(names, keras.tree.flatten(found), strict=True))

    def _fill(self, kept: dict[str, np.ndarray]) -> None:
        """Runs the teacher on all views, and fills the arrays of `kept`."""
        count = self._stream["views"] * self._dataset.steps_per_epoch(
            self._stream["batch_size"]
        )
        for (images, *_), views, positions in self._batches().take(count):
            found = self._by_name(self._targets(images))
            for name, whole in kept.items():
                whole[views.numpy(), positions.numpy()] = found[name]

    def _write(
        self,
        files: dict[str, pathlib.Path],
        specs: dict[str, tuple[tuple[int, ...], str]],
    ) -> None:
        """Writes the files that are missing, each whole or not at all."""
        missing = [name for name, path in files.items() if not path.exists()]
        if not missing:
            return
        with contextlib.ExitStack() as written:
            kept = {}
            for name in missing:
                path = written.enter_context(replacing(files[name]))
                shape, dtype = specs[name]
                kept[name] = open_memmap(path, "w+", dtype, shape)
                # Disk space is allocated now. Otherwise, a disk that gets full
                # while the mapped file is written would kill the process.
                with path.open("rb+") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            self._fill(kept)
            for each in kept.values():
                each.flush()


def fingerprint(*arrays: np.ndarray) -> str:
    """Computes a hash of arrays, in hexadecimal."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()[:16]


def fingerprint_of(dataset: Dataset) -> str:
    """Computes a hash of all that determines the training images' views."""
    images = dataset.x_train
    if not isinstance(images, np.ndarray):
        images = np.array(images.fingerprint())
    return fingerprint(
        images,
        dataset.index_train,
        dataset.mean,
        dataset.std,
        np.array([dataset.full_size, dataset.padding, dataset.flip]),
    )


def _require_own(path: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Writes a folder's manifest, or raises if it has a different one."""
    if not path.exists():
        write_atomically(path, json.dumps(manifest, indent=2) + "\n")
        return
    found = read_json(path)
    others = [
        f"{name}: {found.get(name)!r} there, {value!r} now"
        for name, value in manifest.items()
        if found.get(name) != value
    ]
    if others:
        raise ValueError(
            f"The teacher cache {path.parent} must belong to this teacher, "
            f"data and number of views. Received: {'; '.join(others)}. Choose "
            "another folder, or delete this one."
        )


def _mapped(
    path: pathlib.Path, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Maps an array from a file into memory, and checks its shape and dtype."""
    try:
        found = map_array(path)
        if (found.shape, found.dtype.name) == (shape, dtype):
            return found
        cause = f"{found.shape}, {found.dtype}"
    except ValueError as error:
        cause = str(error)
    raise ValueError(
        f"{path} must hold the teacher's features as {shape}, {dtype}. "
        f"Received: {cause}. Delete the file."
    )


def _all_known(features: Features | list[Features]) -> Any:
    if isinstance(features, Features):
        return _known(features)
    return tuple(_known(each) for each in features)


def _known(features: Features) -> dict[str, Any]:
    return {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in features._asdict().items()
        if value is not None
    }


def _names(
    known: dict[str, Any], points: list[str], prefix: str = ""
) -> dict[str, Any]:
    """Gives each tensor of `_known` a name that is valid for a file.

    Args:
        known: The tensors.
        points: The teacher's sensing points.
        prefix: Prefix of the names, which differs between several teachers.
    """

    def name(field, point):
        return f"{prefix}{field}@{point}".replace("/", "__")

    names = {}
    for field, value in known.items():
        if isinstance(value, tuple):
            # A method that doesn't read all maps reads the last ones.
            last = points[len(points) - len(value) :]
            names[field] = tuple(name(field, point) for point in last)
        elif isinstance(value, dict):
            names[field] = {point: name(field, point) for point in value}
        else:
            names[field] = prefix + field
    return names
