"""Reads arrays from untrusted files."""

import io
import math
import pathlib
import tokenize
import zipfile
import zlib
from collections.abc import Container
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

# Errors that NumPy and zipfile raise for a damaged, foreign or encrypted file.
_DAMAGE = (
    EOFError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_HEADERS = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_BYTES = 2**31
_MOST_EXPANSION = 100


def read_arrays(
    file: pathlib.Path | BinaryIO, names: Container[str] | None = None
) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` file, none with pickled objects.

    Arrays are refused before memory is allocated if a header promises more
    bytes than the file holds. They are also refused if together they have more
    than 2 GiB and more than a hundred times the size of the file.

    Args:
        file: The file, or its content as a stream.
        names: The arrays to read, as far as the file has them; `None` for all.

    Returns:
        The arrays by name.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is damaged, or holds anything but arrays.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = [
                (name, info)
                for info in archive.infolist()
                for name in [info.filename.removesuffix(".npy")]
                if names is None or name in names
            ]
            size = sum(info.file_size for _, info in members)
            packed = archive.fp.seek(0, io.SEEK_END)
            if size > max(_MOST_BYTES, _MOST_EXPANSION * packed):
                raise ValueError(f"{packed} bytes unfold to {size}")
            return {name: _read(archive, info) for name, info in members}
    except _DAMAGE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def map_array(path: pathlib.Path) -> np.memmap:
    """Maps the array of an `.npy` file into memory, read-only.

    Args:
        path: The file.

    Returns:
        The array.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is damaged, or holds something else.
    """
    try:
        return npy.open_memmap(path, "r")
    except _DAMAGE as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{info.filename} has a foreign compression")
    with archive.open(info) as member:
        version = npy.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{info.filename} has format version {version}")
        shape, _, dtype = _HEADERS[version](member)
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= size <= info.file_size - member.tell():
            raise ValueError(
                f"{info.filename} promises {size} bytes of values, and has "
                f"{info.file_size} in all"
            )
    with archive.open(info) as member:
        return npy.read_array(member, allow_pickle=False)
