"""Caches the teacher's features for all epochs and all runs."""

import errno
import hashlib
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.lib.format import open_memmap

from keras_mhgd.checks import require_known, require_one_or_more
from keras_mhgd.data import Dataset
from keras_mhgd.data.dataset import Share
from keras_mhgd.data.files import Joined, OnDemand
from keras_mhgd.distiller import Distiller
from keras_mhgd.distribution import replicas
from keras_mhgd.features import Features, Taught
from keras_mhgd.features.head import End
from keras_mhgd.storage.arrays import map_array
from keras_mhgd.storage.files import (
    locked,
    read_json,
    require_writable,
    write_atomically,
)

_FORMAT = 2
_SAVED_EVERY = 20.0  # seconds of work that a kill may lose
_DTYPES = ("float32", "float16")


class TeacherCache:
    """Runs the teacher once over a fixed number of views of each image.

    Augmentation depends on (seed, view, image) alone, so the cached features
    belong to the very images that the student sees. Training with the cache
    ends with the same weights as training without it. The cache holds the
    features that the method reads (`Method.targets`). For MHGD these are a few
    vectors for each image and view. For a method on whole feature maps they are
    a thousand times as large.

    In a folder, each feature of a view is an `.npy` file that is mapped into
    memory. Other runs and other methods with the same teacher, images, views
    and seed use the files as well. Features that they need in addition are
    added. If filling is killed, the next cache in the folder goes on with it.

    Args:
        distiller: The `keras_mhgd.Distiller` with the teacher and the method.
        dataset: The data.
        batch_size: Images in a batch.
        views: Augmented views of each image, >= 1.
        seed: Seed of order and augmentation.
        directory: Folder of the files. If `None`, features are in memory.
        dtype: `"float32"`, or `"float16"` for half the size and rounded
            features.
        top_k: Number of the largest logits of an image that are kept, with
            their classes. All other classes share the rest of the probability
            equally. `None` keeps all logits. See `top_k_error`.
        verbose: Whether to print the size, and each view that is filled.

    Raises:
        ValueError: If the method also trains the teacher, if the student
            augments its inputs, if `top_k` doesn't fit, or if the folder holds
            features of another teacher, other data, or another format.
        OSError: If the folder can't be written, or its disk has no room.

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
        verbose: bool = False,
        top_k: int | None = None,
    ):
        require_known("dtype", dtype, _DTYPES)
        if top_k is not None:
            require_one_or_more(top_k=top_k)
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
        if top_k is not None:
            _require_softmax_alone(distiller)
        self._top_k = top_k
        # Methods on outputs and logits ask what the outputs mean.
        self._reads_outputs = any(
            each.needs.predictions or each.needs.tasks is not None
            for each in distiller.methods
        )
        self._targets = tf.function(
            lambda images: self._kept_of(distiller.targets(images)),
            input_signature=self._batches().element_spec[0][:1],
            autograph=False,
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
        size = len(dataset.x_train)
        self._specs = {
            name: (
                (size, *each.shape[1:]),
                dtype if each.dtype.is_floating else each.dtype.name,
            )
            for name, each in self._by_name(found).items()
        }
        self._verbose = verbose
        if directory is None:
            self._tell("in memory", self._nbytes(self._specs, views))
            # For each view, the arrays by name.
            self._kept = [
                {name: np.empty(*spec) for name, spec in self._specs.items()}
                for _ in range(views)
            ]
            for view, kept in enumerate(self._kept):
                self._fill(view, kept)
            self._tell_error()
            return
        self._directory = require_writable(directory)
        if replicas.is_chief():
            manifest = {
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
            }
            with locked(self._directory, wait=True):
                _require_own(self._directory / "manifest.json", manifest)
                self._write_missing()
        replicas.wait_for_workers()
        self._kept = [
            {
                name: _mapped(path, *self._specs[name])
                for name, path in self._files(view).items()
            }
            for view in range(views)
        ]
        self._tell_error()

    @property
    def top_k_error(self) -> tuple[float, float]:
        """How far the probabilities of the kept logits are off.

        The mean and the largest of the total variation, `1/2 sum over classes
        |p - q|`, over all images and views. `p` is the softmax of all logits,
        and `q` that of the kept ones. Both are 0 if all logits are kept.
        """
        if self._top_k is None:
            return 0.0, 0.0
        errors = [
            whole
            for kept in self._kept
            for name, whole in kept.items()
            if name.endswith(f"logits@{self._top_k}_error")
        ]
        means = [np.mean(each, dtype=np.float64) for each in errors]
        return float(np.mean(means)), float(max(map(np.max, errors)))

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
        dtypes = [tf.as_dtype(each.dtype) for each in self.rows(0, []).values()]

        def read(views, positions):  # a batch is of one view
            return list(self.rows(views[0], positions).values())

        @tf.autograph.experimental.do_not_convert
        def teach(batch, views, positions):
            images, *labels = batch
            rows = tf.numpy_function(
                read, [views, positions], dtypes, stateful=False
            )
            found = {}
            for (name, (shape, _)), row in zip(
                self._specs.items(), rows, strict=True
            ):
                shape = positions.shape[0], *shape[1:]
                found[name] = tf.ensure_shape(row, shape)
            taught = keras.tree.map_structure(found.get, self._names)
            return Taught(images, self._with_all_logits(taught)), *labels

        return self._batches(
            initial_epoch=initial_epoch, initial_step=initial_step, share=share
        ).map(teach, num_parallel_calls=tf.data.AUTOTUNE)

    def rows(self, view: int, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Reads the features of some images.

        Args:
            view: Number of the view.
            positions: Positions of the images in the training set.

        Returns:
            Arrays `(images, ...)` by name; floats are float32.
        """
        positions = np.asarray(positions, np.int64)
        found = {}
        for name, whole in self._kept[view].items():
            rows = whole[positions]  # only these of a mapped file are read
            is_float = rows.dtype.kind == "f"
            found[name] = rows.astype(np.float32) if is_float else rows
        return found

    def _kept_of(self, found: Features | list[Features]) -> Any:
        """Gives the tensors that are kept: dicts by field."""
        if isinstance(found, Features):
            return self._kept_of_teacher(found)
        return tuple(map(self._kept_of_teacher, found))

    def _kept_of_teacher(self, found: Features) -> dict[str, Any]:
        known = _known(found)
        if not self._reads_outputs:
            known.pop("outputs", None)
        return self._with_top_k(known)

    def _with_top_k(self, known: dict[str, Any]) -> dict[str, Any]:
        if self._top_k is None:
            return known
        logits = known.get("logits")
        if not (tf.is_tensor(logits) and logits.shape.rank == 2):
            raise ValueError(
                "`top_k` needs a method that learns from the logits of one "
                "output, such as 'soft_logits'. Received: methods that read "
                f"{', '.join(known)}. Leave `top_k` out."
            )
        self._classes = logits.shape[1]
        if self._top_k >= self._classes:
            raise ValueError(
                "`top_k` must be smaller than the number of classes, "
                f"{self._classes}. Received: top_k={self._top_k}."
            )
        kept = {name: known[name] for name in known if name != "outputs"}
        return {**kept, "logits": _top(logits, self._top_k)}

    def _with_all_logits(self, kept: Any) -> Any:
        """Makes full logits of those that were kept."""
        if self._top_k is None:
            return kept
        if isinstance(kept, tuple):
            return tuple(map(self._with_all_logits, kept))
        logits = _spread(kept["logits"], self._top_k, self._classes)
        # No method reads the outputs themselves.
        return {**kept, "logits": logits, "outputs": logits}

    def _tell_error(self) -> None:
        if self._verbose and self._top_k is not None:
            mean, most = self.top_k_error
            print(
                f"The {self._top_k} largest logits of {self._classes} are "
                f"kept: the probabilities are off by {mean:.2g} on average, "
                f"{most:.2g} at most (total variation)."
            )

    def _batches(self, **place: Any) -> tf.data.Dataset:
        return self._dataset.train_with_places(**self._stream, **place)

    def _by_name(self, found: dict[str, Any]) -> dict[str, tf.Tensor]:
        names = keras.tree.flatten(self._names)
        return dict(zip(names, keras.tree.flatten(found), strict=True))

    def _files(self, view: int) -> dict[str, pathlib.Path]:
        return {
            name: self._directory / f"{name}.{dtype}.{view:05}.npy"
            for name, (_, dtype) in self._specs.items()
        }

    def _nbytes(self, names: Iterable[str], views: int) -> int:
        specs = [self._specs[name] for name in names]
        return views * sum(
            math.prod(shape) * np.dtype(dtype).itemsize
            for shape, dtype in specs
        )

    def _tell(self, where: str, nbytes: int) -> None:
        if self._verbose:
            print(
                f"Teacher cache: {self._stream['views']} views of "
                f"{len(self._dataset.x_train):,} {self._dataset.kind}, "
                f"{nbytes / 2**30:.2f} GB to fill {where}."
            )

    def _fill(
        self,
        view: int,
        kept: dict[str, np.ndarray],
        steps: int = 0,
        save: Callable[[int], None] | None = None,
    ) -> None:
        """Runs the teacher on a view, and fills the arrays of `kept`.

        Its batches are those of the epoch that first shows the view, as a
        teacher's round-off may depend on the batch.

        Args:
            view: Number of the view.
            kept: The arrays to fill.
            steps: Batches that are filled already.
            save: Called now and then with the number of batches filled.
        """
        all_steps = self._dataset.steps_per_epoch(self._stream["batch_size"])
        batches = self._batches(initial_epoch=view, initial_step=steps)
        saved = time.monotonic()
        for (images, *_), _, positions in batches.take(all_steps - steps):
            found = self._by_name(self._targets(images))
            for name, whole in kept.items():
                whole[positions.numpy()] = found[name]
            steps += 1
            if save and time.monotonic() - saved > _SAVED_EVERY:
                save(steps)
                saved = time.monotonic()

    def _write_missing(self) -> None:
        """Writes the files that are missing, view by view."""
        missing = {
            view: [name for name, path in files.items() if not path.exists()]
            for view in range(self._stream["views"])
            for files in [self._files(view)]
        }
        nbytes = sum(self._nbytes(names, 1) for names in missing.values())
        if not nbytes:
            return
        self._tell(f"in {self._directory}", nbytes)
        begun = sum(
            path.stat().st_size for path in self._directory.glob("*.partial")
        )
        free = shutil.disk_usage(self._directory).free
        if nbytes > free + begun:
            raise OSError(
                errno.ENOSPC,
                "The disk must have room for the teacher's features "
                f"({os.strerror(errno.ENOSPC)}). They take "
                f"{nbytes / 2**30:.2f} GB, and {free / 2**30:.2f} GB are free. "
                "Take fewer views or another folder",
                str(self._directory),
            )
        for view, names in missing.items():
            if names:
                self._write(view, names)

    def _write(self, view: int, names: list[str]) -> None:
        """Writes files of a view, or goes on where a killed process was.

        The files have the suffix `.partial` until they are whole. A JSON file
        says how many batches they hold.
        """
        files = {name: self._files(view)[name] for name in names}
        partial = {
            name: path.with_suffix(".partial") for name, path in files.items()
        }
        progress = self._directory / "filling.json"
        contents = {"view": view, "names": names}
        steps = 0
        if progress.exists() and all(map(os.path.exists, partial.values())):
            found = read_json(progress)
            if contents.items() <= found.items():
                steps = int(found["steps"])
        kept = {}
        try:
            if not steps:
                progress.unlink(missing_ok=True)
            for name, path in partial.items():
                kept[name] = _opened(path, *self._specs[name], new=not steps)

            def save(steps):
                for each in kept.values():
                    each.flush()
                text = json.dumps({**contents, "steps": steps})
                write_atomically(progress, text)

            self._fill(view, kept, steps, save)
            for each in kept.values():
                each.flush()
            for name, path in partial.items():
                os.replace(path, files[name])
            progress.unlink(missing_ok=True)
        except BaseException:
            if not progress.exists():
                for path in partial.values():
                    path.unlink(missing_ok=True)
            raise
        if self._verbose:
            print(f"View {view + 1} of {self._stream['views']} is filled.")


def fingerprint(*arrays: np.ndarray | OnDemand | Joined) -> str:
    """Computes a hash of arrays, in hexadecimal.

    Sets of images that are not in memory have a fingerprint of their own, for
    which no image is read.
    """
    digest = hashlib.sha256()
    for array in arrays:
        if isinstance(array, OnDemand | Joined):
            digest.update(array.fingerprint().encode())
            continue
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()[:16]


def fingerprint_of(dataset: Dataset) -> str:
    """Computes a hash of all that determines the training images' views."""
    return fingerprint(
        dataset.x_train,
        dataset.index_train,
        dataset.mean,
        dataset.std,
        np.array([dataset.full_size, dataset.padding, dataset.flip]),
        *_of_layers(dataset),
    )


def _of_layers(dataset: Dataset) -> list[np.ndarray]:
    """Describes layers and mixing, if views are made by them."""
    if not (dataset.layers or dataset.mixing):
        return []
    layers = dataset.layers and keras.saving.serialize_keras_object(
        dataset.layers
    )
    return [np.array([json.dumps([layers, dataset.mixing], sort_keys=True)])]


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


def _opened(
    path: pathlib.Path, shape: tuple[int, ...], dtype: str, new: bool
) -> np.ndarray:
    """Maps a file into memory for writing, and allocates its disk space.

    Otherwise, a disk that gets full while the mapped file is written would kill
    the process.
    """
    try:
        if new:
            open_memmap(path, "w+", dtype, shape)
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The file must be written whole ({error.strerror or error}). Make "
            "space or mend the permissions, then try again",
            str(path.with_suffix(".npy")),
        ) from error
    return open_memmap(path, "r+")


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


def _require_softmax_alone(distiller: Distiller) -> None:
    """Checks that the largest logits stand for all that methods read."""
    readers = [each.name for each in distiller.methods if each.needs.outputs]
    ends = distiller.teacher_ends
    fit = [
        isinstance(end, End)
        and end.form != "sigmoid"
        and not end.is_probability
        for end in ends
    ]
    if readers or not all(fit):
        raise ValueError(
            "`top_k` needs methods that read logits, not outputs, and a "
            "teacher with one output of logits or with a softmax as its last "
            f"operation. Received: methods that read outputs: {readers}; "
            f"teachers that end in {ends}. Leave `top_k` out."
        )


def _top(logits: tf.Tensor, k: int) -> dict[str, tf.Tensor]:
    """Takes the largest logits, and what is needed to spread the rest.

    Args:
        logits: `(batch, classes)`.
        k: Number of logits to keep, smaller than the number of classes.

    Returns:
        `values` and `classes` `(batch, k)` of the largest logits; `rest`
        `(batch, 1)`, the logarithm of the mean of `exp` over the others; and
        the `error` `(batch,)`: see `TeacherCache.top_k_error`. Their names
        begin with `k`, so a folder can hold those of several `k`.
    """
    values, classes = tf.math.top_k(logits, k)
    number = logits.shape[1]
    is_top = tf.reduce_sum(tf.one_hot(classes, number), axis=1) > 0
    others = tf.where(is_top, logits.dtype.min, logits)
    rest = tf.reduce_logsumexp(others, axis=1, keepdims=True)
    rest -= tf.cast(tf.math.log(float(number - k)), rest.dtype)
    kept = {
        f"{k}_values": values,
        f"{k}_classes": classes,
        f"{k}_rest": rest,
    }
    differences = tf.nn.softmax(logits) - tf.nn.softmax(
        _spread(kept, k, number)
    )
    return {**kept, f"{k}_error": tf.reduce_sum(tf.abs(differences), 1) / 2}


def _spread(kept: dict[str, tf.Tensor], k: int, number: int) -> tf.Tensor:
    """Makes logits of all classes of those of `_top`."""
    values, classes, rest = (
        kept[f"{k}_{name}"] for name in ("values", "classes", "rest")
    )
    images = tf.repeat(tf.range(tf.shape(values)[0]), k)
    places = tf.stack([images, tf.reshape(classes, [-1])], axis=1)
    whole = tf.repeat(rest, number, axis=1)
    return tf.tensor_scatter_nd_update(whole, places, tf.reshape(values, [-1]))


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
