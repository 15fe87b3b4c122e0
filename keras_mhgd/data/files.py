"""Reads images by index: from files when they are needed, and joined sets."""

import concurrent.futures
import functools
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mhgd.data import images

_AT_ONCE = 1024


class Files:
    """Reads images by index from files, each when it is needed.

    It stands for an array `(count, height, width, 3)`, uint8: it has the
    array's `shape`, `dtype` and `len`, and an index reads images. The paths are
    all that it keeps in memory.

    Args:
        paths: PNG or JPEG files, at least one.
        image_size: Height and width to resize to, pixels. Defaults to `None`:
            all images must have the size of the first one.

    Raises:
        ValueError: If there is no `image_size`, and the first file is damaged
            or too large.
        OSError: If the first file can't be read then.
    """

    dtype = np.dtype("uint8")
    ndim = 4

    def __init__(
        self,
        paths: Sequence[Path] | np.ndarray,
        image_size: tuple[int, int] | None = None,
    ):
        if not isinstance(paths, np.ndarray):
            paths = np.array([os.fsencode(path) for path in paths])
        self._paths = paths
        self._image_size = image_size
        if image_size is None:
            image_size = images.read_file(self._path(0)).shape[:2]
        self._size = tuple(image_size)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index) -> np.ndarray:
        """Reads the images of an index, as indexing an array does.

        Raises:
            ValueError: If a file is damaged, too large, or of another size.
            OSError: If a file can't be read.
        """
        places = np.arange(len(self))[index]
        if not places.ndim:
            return self._read_path(self._paths[places])
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        try:
            with tf.init_scope():  # also while a graph is made
                read = tf.data.Dataset.from_tensor_slices(places).map(
                    self.read, num_parallel_calls=os.cpu_count()
                )
                for row, image in zip(found, read, strict=True):
                    row[:] = image
        except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError):
            self.require_whole(places)
            raise
        return found

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, height, width (pixels), and 3 channels."""
        return (len(self), *self._size, 3)

    @property
    def size(self) -> int:
        """Number of bytes of the array that this stands for."""
        return int(np.prod(self.shape, dtype=np.int64))

    def part(self, index: np.ndarray) -> "Files":
        """Gives some of the images, without reading them."""
        chosen = object.__new__(Files)
        chosen._paths = self._paths[index]
        chosen._image_size, chosen._size = self._image_size, self._size
        return chosen

    def read(self, position: tf.Tensor) -> tf.Tensor:
        """Reads an image in a graph.

        Args:
            position: Scalar integer.

        Returns:
            uint8 `(height, width, 3)`.
        """
        image = self.read_unsized(position)
        if self._image_size is not None:
            image = images.resize(image, self._image_size)
        return tf.ensure_shape(image, self.shape[1:])

    def read_unsized(self, position: tf.Tensor) -> tf.Tensor:
        """Reads an image in a graph, in its own size."""
        data = tf.io.read_file(tf.gather(self._tensor, position))
        return images.decode(data)

    def require_whole(self, positions: Sequence[int] | None = None) -> None:
        """Reads files to find one that is damaged.

        Args:
            positions: The files to read. Defaults to `None`: all.

        Raises:
            ValueError: If a file is damaged, too large, or of another size.
            OSError: If a file can't be read.
        """
        paths = self._paths if positions is None else self._paths[positions]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            # Without slices the pool would run ahead and hold every image.
            for first in range(0, len(paths), _AT_ONCE):
                for _ in pool.map(self._read_path, paths[first:][:_AT_ONCE]):
                    pass

    def fingerprint(self) -> str:
        """Computes a hash of the files' names and sizes, in hexadecimal."""
        digest = hashlib.sha256(repr(self._image_size).encode())
        for path in self._paths:
            folder, name = os.path.split(path)
            size = os.stat(path).st_size
            digest.update(
                b"%s/%s %d\n" % (os.path.basename(folder), name, size)
            )
        return digest.hexdigest()[:16]

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU:0"):
            return tf.constant(self._paths)

    def _path(self, position: int) -> Path:
        return Path(os.fsdecode(self._paths[position]))

    def _read_path(self, path: bytes) -> np.ndarray:
        path = Path(os.fsdecode(path))
        image = images.read_file(path)
        if self._image_size is not None:
            image = images.resize(image, self._image_size)
        if tuple(image.shape) != self.shape[1:]:
            raise ValueError(
                "The images must be of one size. "
                f"Received: {path} of shape {tuple(image.shape)}, others of "
                f"shape {self.shape[1:]}. Pass image_size=(height, width) to "
                "resize them."
            )
        return image.numpy()


class Joined:
    """Puts sets of images one after another, without copying them.

    Args:
        sets: Arrays or `Files`, of images of one size.
    """

    dtype = np.dtype("uint8")
    ndim = 4

    def __init__(self, sets: Sequence[np.ndarray | Files]):
        self._sets = list(sets)
        self._ends = np.cumsum([len(each) for each in sets])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index) -> np.ndarray:
        """Reads the images of an index, as indexing an array does."""
        places = np.arange(len(self))[index]
        numbers = np.searchsorted(self._ends, places, side="right")
        if not np.ndim(places):
            return self._sets[numbers][places - self._first(numbers)]
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        for number, each in enumerate(self._sets):
            here = numbers == number
            found[here] = each[places[here] - self._first(number)]
        return found

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, height, width (pixels), and channels."""
        return (len(self), *self._sets[0].shape[1:])

    @property
    def size(self) -> int:
        """Number of bytes of the array that this stands for."""
        return int(np.prod(self.shape, dtype=np.int64))

    def part(self, index: np.ndarray) -> "Joined":
        """Gives some of the images, those of the first set first.

        Raises:
            ValueError: If the index doesn't rise.
        """
        index = np.asarray(index)
        if (np.diff(index) <= 0).any():
            raise ValueError(
                "`index` must rise: joined sets keep their order. "
                f"Received: {index}."
            )
        bounds = np.searchsorted(index, [0, *self._ends])
        chosen = [
            index[first:last] - self._first(number)
            for number, (first, last) in enumerate(itertools.pairwise(bounds))
        ]
        return Joined(
            [
                each.part(rows) if isinstance(each, Files) else each[rows]
                for each, rows in zip(self._sets, chosen, strict=True)
                if len(rows)
            ]
        )

    def read(self, position: tf.Tensor) -> tf.Tensor:
        """Reads an image in a graph: see `Files.read`."""
        return self._read(position, "read")

    def read_unsized(self, position: tf.Tensor) -> tf.Tensor:
        """Reads an image in a graph, those of files in their own sizes."""
        return self._read(position, "read_unsized")

    def require_whole(self, positions: Sequence[int] | None = None) -> None:
        """Reads files to find one that is damaged: see `Files`."""
        if positions is None:
            positions = range(len(self))
        positions = np.asarray(positions)
        for number, each in enumerate(self._sets):
            rows = positions - self._first(number)
            if isinstance(each, Files):
                each.require_whole(rows[(rows >= 0) & (rows < len(each))])

    def fingerprint(self) -> str:
        """Computes a hash of the sets, in hexadecimal."""
        digest = hashlib.sha256()
        for each in self._sets:
            files = isinstance(each, Files)
            digest.update(each.fingerprint().encode() if files else each.data)
        return digest.hexdigest()[:16]

    def _first(self, number: int) -> int:
        return int(self._ends[number]) - len(self._sets[number])

    @functools.cached_property
    def _tensors(self) -> list[tf.Tensor | None]:
        with tf.init_scope(), tf.device("CPU:0"):
            return [
                None if isinstance(each, Files) else tf.constant(each)
                for each in self._sets
            ]

    def _read(self, position, how):
        def reader(number):
            place = position - self._first(number)
            if self._tensors[number] is None:
                return lambda: getattr(self._sets[number], how)(place)
            return lambda: tf.gather(self._tensors[number], place)

        number = tf.searchsorted(
            tf.constant(self._ends, position.dtype),
            position[tf.newaxis],
            side="right",
        )[0]
        readers = [reader(each) for each in range(len(self._sets))]
        return tf.switch_case(number, readers)
