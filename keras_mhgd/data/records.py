"""Reads images by index from the record files of TensorFlow Datasets."""

import abc
import contextlib
import functools
import hashlib
import io
import os
import pathlib
import struct
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_mhgd.data import images
from keras_mhgd.data.files import OnDemand
from keras_mhgd.storage.arrays import read_arrays
from keras_mhgd.storage.files import write_atomically

_HEADER = struct.Struct("<QI")  # length of the data, and a checksum of it
_CHECKSUM = 4
# ArrayRecord files that are open at once, and bytes that each reads at once.
_OPEN, _BUFFER = 64, 2**15


class Reader(abc.ABC):
    """Reads the bytes of a record by its index in files, one after another.

    Args:
        paths: The files.
        lengths: Number of records that each file must have. Defaults to
            `None`: any.

    Raises:
        OSError: If a file can't be read.
        ValueError: If a file is damaged, or has another number of records.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        lengths: Sequence[int] | None = None,
    ):
        self._paths = list(map(os.fspath, paths))
        found = self._counts()
        for path, count, length in zip(
            self._paths,
            found,
            found if lengths is None else lengths,
            strict=True,
        ):
            if count != length:
                raise ValueError(
                    f"{path} must have the {length} records of which the set's "
                    f"dataset_info.json tells. Received: {count} records in "
                    f"{os.path.getsize(path)} bytes. Prepare the set anew."
                )
        self._ends = np.cumsum(found)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @abc.abstractmethod
    def __getitem__(self, index: int) -> bytes: ...

    @abc.abstractmethod
    def stream(self) -> tf.data.Dataset:
        """Streams all records once, in order, with their checksums checked."""

    @abc.abstractmethod
    def _counts(self) -> Sequence[int]:
        """Counts the records of each file."""

    def path(self, index: int) -> str:
        """Gives the file of a record."""
        return self._paths[self._number(index)]

    def _number(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))


class TFRecords(Reader):
    """Reads records by index from TFRecord files, which have no index."""

    def _counts(self):
        self._places = kept_beside(self._paths, "places", self._found)
        return np.bincount(self._places[:, 0], minlength=len(self._paths))

    def _found(self) -> np.ndarray:
        """Finds each record: its file's number, the data's place and length."""
        found = [
            (number, *place)
            for number, path in enumerate(self._paths)
            for place in _places(path)
        ]
        return np.array(found, np.int64).reshape(-1, 3)

    def stream(self):
        return tf.data.TFRecordDataset(self._paths)

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


class ArrayRecords(Reader):
    """Reads records by index from ArrayRecord files.

    A file that is cut has no index, and thus no records.
    """

    def _counts(self):
        from array_record.python import array_record_module

        # A file is closed when its reader is dropped.
        self._opened = functools.lru_cache(_OPEN)(
            functools.partial(
                array_record_module.ArrayRecordReader,
                options="readahead_buffer_size:0",
                file_reader_buffer_size=_BUFFER,
            )
        )
        return [self._opened(path).num_records() for path in self._paths]

    def stream(self):
        return tf.data.Dataset.range(len(self)).map(
            tf.autograph.experimental.do_not_convert(
                functools.partial(read_bytes, self)
            ),
            num_parallel_calls=os.cpu_count(),
        )

    def __getitem__(self, index: int) -> bytes:
        number = self._number(index)
        reader = self._opened(self._paths[number])
        from_end = index - int(self._ends[number])
        return reader.read([reader.num_records() + from_end])[0]


def kept_beside(
    paths: Sequence[str | os.PathLike],
    name: str,
    make: Callable[[], np.ndarray],
) -> np.ndarray:
    """Gives an array about record files, which a file beside them keeps.

    The array is made anew if a record file has another name, size or time. It
    is made each time if the file can't be read or written.

    Args:
        paths: The record files.
        name: Name of the array.
        make: Makes the array.

    Raises:
        OSError: If a record file is not there.
    """
    first = pathlib.Path(paths[0])
    file = first.with_name(f".{first.name}.{name}.npz")
    stats = [os.stat(path) for path in paths]
    known = [
        (os.path.basename(path), stat.st_size, stat.st_mtime_ns)
        for path, stat in zip(paths, stats, strict=True)
    ]
    digest = hashlib.sha256(repr(known).encode()).digest()
    of_files = np.frombuffer(digest, np.uint8)
    with contextlib.suppress(KeyError, OSError, ValueError):
        kept = read_arrays(file)
        if np.array_equal(kept["files"], of_files):
            return kept[name]
    made = make()
    content = io.BytesIO()
    np.savez_compressed(content, files=of_files, **{name: made})
    with contextlib.suppress(OSError):
        write_atomically(file, content.getvalue())
    return made


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
                raise damaged(
                    self._name, self._reader, number, error
                ) from error

    def fingerprint(self):
        """Computes a hash of the set's name and the index, in hexadecimal."""
        digest = hashlib.sha256(self._name.encode())
        digest.update(repr(self._resizes and self._image_shape).encode())
        digest.update(self._places.tobytes())
        return digest.hexdigest()[:16]


def damaged(
    name: str, reader: Reader, index: int, error: Exception
) -> ValueError:
    """Makes the error for a damaged record.

    Args:
        name: Name of the set.
        reader: Gives the record's file.
        index: Number of the record in the set.
        error: What reading the record has raised.
    """
    return ValueError(
        f"A record of {name} must hold a whole image and its label. Received: "
        f"{reader.path(index)}, record {index}: {images.reason(error)}. "
        "Prepare the set anew."
    )


def read_bytes(reader: Reader, index: tf.Tensor) -> tf.Tensor:
    """Reads a record in a graph: a scalar string."""
    read = functools.partial(_read, reader)
    data = tf.numpy_function(read, [index], tf.string, stateful=False)
    return tf.ensure_shape(data, ())


def _read(reader: Reader, index: np.ndarray) -> bytes:
    return reader[int(index)]
