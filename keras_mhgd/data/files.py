"""Reads images by index: from files when they are needed, and joined sets."""

import abc
import concurrent.futures
import copy
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mhgd.data import images

_AT_ONCE = 1024
# Sets of at most so many bytes are kept in memory: see `kept_if_small`.
_IN_MEMORY = 2**29
# Images of larger sets that are read at once to check them.
_CHECKED = 100


class OnDemand(abc.ABC):
    """Reads images by index, each when it is needed.

    It stands for an array `(count, height, width, channels)`, uint8: it has the
    array's `shape`, `dtype` and `len`, and an index reads images.

    Args:
        places: Where each image is, such as its path: all that is kept.
        size: Height and width of the images, pixels.
        resizes: Whether images of another size are resized.
        channels: Number of channels.
    """

    dtype = np.dtype("uint8")
    ndim = 4

    def __init__(
        self,
        places: np.ndarray,
        size: Sequence[int],
        resizes: bool,
        channels: int,
    ):
        self._places = places
        self._image_shape = (*size, channels)
        self._resizes = resizes

    @abc.abstractmethod
    def _read(self, place: tf.Tensor) -> tf.Tensor:
        """Reads the image at a place in a graph, in its own size."""

    @abc.abstractmethod
    def require_whole(self, positions: Sequence[int] | None = None) -> None:
        """Reads images to find one that is damaged.

        Args:
            positions: The images to read. Defaults to `None`: all.

        Raises:
            ValueError: If an image is damaged, too large, or of another size.
            OSError: If a file can't be read.
        """

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Computes a hash that tells other images, in hexadecimal."""

    def __len__(self) -> int:
        return len(self._places)

    def part(self, index: np.ndarray) -> "OnDemand":
        """Gives some of the images, without reading them.

        Args:
            index: Positions of the images, integers `(count,)`.

        Returns:
            A set of the same kind, with these images in this order.
        """
        chosen = copy.copy(self)
        chosen.__dict__.pop("_tensor", None)
        chosen._places = self._places[index]
        return chosen

    def read_unsized(self, position: tf.Tensor) -> tf.Tensor:
        """Reads an image in a graph, in its own size.

        Args:
            position: Scalar integer.

        Returns:
            uint8 `(height, width, channels)` of the image's own size.
        """
        return self._read(tf.gather(self._tensor, position))

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        with tf.init_scope(), tf.device("CPU:0"):
            return tf.constant(self._places)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Number of images, height, width (pixels), and channels."""
        return (len(self), *self._image_shape)

    @property
    def size(self) -> int:
        """Number of bytes of the array that this stands for."""
        return int(np.prod(self.shape, dtype=np.int64))

    def read(self, position: tf.Tensor) -> tf.Tensor:
        """Reads an image in a graph.

        Args:
            position: Scalar integer.

        Returns:
            uint8 `(height, width, channels)`.
        """
        image = self.read_unsized(position)
        if self._resizes:
            image = _resized(image, self._image_shape[:2])
        return tf.ensure_shape(image, self._image_shape)

    def __getitem__(self, index) -> np.ndarray:
        """Reads the images of an index, as indexing an array does.

        Raises:
            ValueError: If an image is damaged, too large, or of another size.
            OSError: If a file can't be read.
        """
        places = np.arange(len(self))[index]
        rows = np.atleast_1d(places)
        found = np.empty((len(rows), *self._image_shape), self.dtype)
        with tf.init_scope():  # also while a graph is made
            for row, image in zip(found, self._images(rows), strict=True):
                row[:] = image
        return found if places.ndim else found[0]

    def _images(self, positions: np.ndarray) -> Iterator[tf.Tensor]:
        """Reads images one after another."""
        read = tf.data.Dataset.from_tensor_slices(positions).map(
            tf.autograph.experimental.do_not_convert(self.read),
            num_parallel_calls=os.cpu_count(),
        )
        try:
            yield from read
        except tf.errors.OpError:
            self.require_whole(positions)
            raise


class Files(OnDemand):
    """Reads images by index from files. It keeps only their paths in memory.

    Args:
        paths: PNG or JPEG files, at least one.
        image_size: Height and width to resize to, pixels. Defaults to `None`:
            all images must have the size of the first one.

    Raises:
        ValueError: If there is no `image_size`, and the first file is damaged
            or too large.
        OSError: If the first file can't be read then.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        image_size: tuple[int, int] | None = None,
    ):
        paths = np.array([os.fsencode(path) for path in paths])
        size = image_size
        if image_size is None:
            size = images.read_file(_path(paths[0])).shape[:2]
        super().__init__(paths, size, image_size is not None, channels=3)

    def _read(self, place):
        return images.decode(tf.io.read_file(place))

    def require_whole(self, positions=None):
        """Reads images to find one that is damaged.

        Args:
            positions: The images to read, an array of integers `(count,)`.
                Defaults to `None`: all.

        Raises:
            ValueError: If an image is damaged, too large, or of another size.
            OSError: If a file can't be read.
        """
        every = np.arange(len(self))
        for _ in self._one_by_one(every if positions is None else positions):
            pass

    def _images(self, positions):
        # Making a graph would take longer than reading a small folder.
        few = len(positions) <= _AT_ONCE
        return (self._one_by_one if few else super()._images)(positions)

    def _one_by_one(self, positions: np.ndarray) -> Iterator[tf.Tensor]:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            # Without slices the pool would run ahead and hold every image.
            for first in range(0, len(positions), _AT_ONCE):
                yield from pool.map(
                    self._read_whole, self._places[positions[first:][:_AT_ONCE]]
                )

    def fingerprint(self):
        """Computes a hash of the files' names and sizes, in hexadecimal."""
        shape = self._resizes and self._image_shape
        digest = hashlib.sha256(repr(shape).encode())
        for path in self._places:
            folder, name = os.path.split(path)
            place = os.path.basename(folder), name, os.stat(path).st_size
            digest.update(b"%s/%s %d\n" % place)
        return digest.hexdigest()[:16]

    def _read_whole(self, path: bytes) -> tf.Tensor:
        image = images.read_file(_path(path))
        if self._resizes:
            return _resized(image, self._image_shape[:2])
        if tuple(image.shape) != self._image_shape:
            raise ValueError(
                "The images must be of one size. "
                f"Received: {_path(path)} of shape {tuple(image.shape)}, "
                f"others of shape {self._image_shape}. Pass "
                "image_size=(height, width) to resize them: --image_size."
            )
        return image


@tf.function(reduce_retracing=True, autograph=False)
def _resized(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    # Resizing to the same size would change nothing, but takes long.
    return tf.cond(
        tf.reduce_any(tf.shape(image)[:2] != size),
        lambda: images.resize(image, size),
        lambda: tf.identity(image),
    )


def _path(path: bytes) -> Path:
    return Path(os.fsdecode(path))


class Joined:
    """Puts sets of images one after another, without copying them.

    Args:
        sets: Arrays, `Files` or `Records`, of images of one size.
    """

    dtype = np.dtype("uint8")
    ndim = 4

    def __init__(self, sets: Sequence[np.ndarray | OnDemand]):
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
                each.part(rows) if isinstance(each, OnDemand) else each[rows]
                for each, rows in zip(self._sets, chosen, strict=True)
                if len(rows)
            ]
        )

    def read(self, position: tf.Tensor) -> tf.Tensor:
        """Reads an image in a graph: see `OnDemand.read`."""
        return tf.ensure_shape(self._read(position, "read"), self.shape[1:])

    def read_unsized(self, position: tf.Tensor) -> tf.Tensor:
        """Reads an image in a graph, those of files in their own sizes."""
        return self._read(position, "read_unsized")

    def require_whole(self, positions: Sequence[int] | None = None) -> None:
        """Reads images to find one that is damaged: see `OnDemand`."""
        if positions is None:
            positions = range(len(self))
        positions = np.asarray(positions)
        for number, each in enumerate(self._sets):
            rows = positions - self._first(number)
            if isinstance(each, OnDemand):
                each.require_whole(rows[(rows >= 0) & (rows < len(each))])

    def fingerprint(self) -> str:
        """Computes a hash of the sets, in hexadecimal."""
        digest = hashlib.sha256()
        for each in self._sets:
            lazy = isinstance(each, OnDemand)
            digest.update(each.fingerprint().encode() if lazy else each.data)
        return digest.hexdigest()[:16]

    def _first(self, number: int) -> int:
        return int(self._ends[number]) - len(self._sets[number])

    @functools.cached_property
    def _tensors(self) -> list[tf.Tensor | None]:
        with tf.init_scope(), tf.device("CPU:0"):
            return [
                None if isinstance(each, OnDemand) else tf.constant(each)
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


def kept_if_small(lazy: OnDemand) -> np.ndarray | OnDemand:
    """Reads a set of images into memory if it takes 512 MB at most.

    Shifted crops of images in memory come twice as fast as those of files that
    are decoded in each epoch, but memory holds the images more than once: see
    benchmarks/README.md.
    """
    if lazy.size <= _IN_MEMORY:
        return lazy[:]
    # Finds soon that images differ in size, or are of another kind.
    spread = np.linspace(0, len(lazy) - 1, _CHECKED).round().astype(int)
    lazy.require_whole(np.unique(spread))
    return lazy
