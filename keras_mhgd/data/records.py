"""Reads images by index from the record files of TensorFlow Datasets."""

import functools
import hashlib
import os
import struct
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from keras_mhgd.data.files import OnDemand

_HEADER = struct.Struct("<QI")  # length of the data, and a checksum of it
_CHECKSUM = 4
# ArrayRecord files that are open at once, and bytes that each reads at once.
_OPEN, _BUFFER = 64, 2**15


class Reader(Protocol):
    """Reads the bytes of a record by its index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> bytes: ...


class TFRecords:
    """Reads records by index from TFRecord files, which have no index.

    Args:
        paths: The files, one after another.

    Raises:
        OSError: If a file can't be read.
        ValueError: If a file ends within a record.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        self._paths = paths
        found = [
            (number, *place)
            for number, path in enumerate(paths)
            for place in _places(path)
        ]
        # Number of the file, place of the data in it, and its length.
        self._places = np.array(found, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        number, offset, length = self._places[index].tolist()
        # Opening takes microseconds. A large set has more files than a process
        # may keep open.
        with open(self._paths[number], "rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)


def _places(path: str | os.PathLike) -> list[tuple[int, int]]:
    """Finds the place and the length of each record's data in a file."""
    found, offset = [], 0
    size = os.stat(path).st_size
    with open(path, "rb", buffering=0) as file:
        while offset < size:
            head = os.pread(file.fileno(), _HEADER.size, offset)
            offset += _HEADER.size
            end = size + 1
            if len(head) == _HEADER.size:
                length, _ = _HEADER.unpack(head)
                end = offset + length + _CHECKSUM
            if end > size:
                raise ValueError(
                    f"{path} must be a whole TFRecord file. Received: {size} "
                    "bytes, which end within a record. Prepare the set anew."
                )
            found.append((offset, length))
            offset = end
    return found


class ArrayRecords:
    """Reads records by index from ArrayRecord files.

    Args:
        paths: The files, one after another.

    Raises:
        RuntimeError: If a file can't be read or is damaged.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]):
        from array_record.python import array_record_module

        self._paths = paths
        # A file is closed when its reader is dropped.
        self._opened = functools.lru_cache(_OPEN)(
            functools.partial(
                array_record_module.ArrayRecordReader,
                options="readahead_buffer_size:0",
                file_reader_buffer_size=_BUFFER,
            )
        )
        self._ends = np.cumsum(
            [self._opened(path).num_records() for path in paths]
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        number = int(np.searchsorted(self._ends, index, side="right"))
        reader = self._opened(self._paths[number])
        from_end = index - int(self._ends[number])
        return reader.read([reader.num_records() + from_end])[0]


class Records(OnDemand):
    """Reads images by index from records. It keeps only an index in memory.

    Args:
        reader: Gives the bytes of each record.
        image_of: A function in a graph: the image of a record's bytes.
        size: Height and width of the images, pixels.
        resizes: Whether images of another size are resized.
        channels: Number of channels.
        name: Name of the set, for its fingerprint.
    """

    def __init__(
        self,
        reader: Reader,
        image_of: Callable[[tf.Tensor], tf.Tensor],
        size: Sequence[int],
        resizes: bool,
        channels: int,
        name: str,
    ):
        super().__init__(np.arange(len(reader)), size, resizes, channels)
        self._reader, self._image_of, self._name = reader, image_of, name

    def _read(self, place):
        return self._image_of(read_bytes(self._reader, place))

    def require_whole(self, positions=None):
        places = self._places if positions is None else self._places[positions]
        for number in places:
            try:
                self._image_of(tf.constant(self._reader[int(number)]))
            except (
                tf.errors.OpError,
                OSError,
                RuntimeError,  # of ArrayRecord
                ValueError,
            ) as error:
                raise ValueError(
                    f"A record of {self._name} must hold a whole image. "
                    f"Received: record {number}: {error}. Prepare the set anew."
                ) from error

    def fingerprint(self):
        """Computes a hash of the set's name and the index, in hexadecimal."""
        digest = hashlib.sha256(self._name.encode())
        digest.update(repr(self._resizes and self._image_shape).encode())
        digest.update(self._places.tobytes())
        return digest.hexdigest()[:16]


def read_bytes(reader: Reader, index: tf.Tensor) -> tf.Tensor:
    """Reads a record in a graph: a scalar string."""
    read = functools.partial(_read, reader)
    data = tf.numpy_function(read, [index], tf.string, stateful=False)
    return tf.ensure_shape(data, ())


def _read(reader: Reader, index: np.ndarray) -> bytes:
    return reader[int(index)]
