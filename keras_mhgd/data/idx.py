"""Reads Fashion-MNIST from IDX files, compressed or not."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from keras_mhgd.data.dataset import Dataset

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")

_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_UNSIGNED_BYTE = 8
_MOST_BYTES = 2**31


def is_folder(folder: Path) -> bool:
    """Checks whether a folder holds training images in IDX form."""
    return _find(folder, "train-images-idx3-ubyte") is not None


def read_fashion_mnist(folder: Path) -> Dataset:
    """Reads the four IDX files of Fashion-MNIST.

    Args:
        folder: Folder with `train-images-idx3-ubyte` and the other three
            files, each with or without the suffix `.gz`.

    Returns:
        `Dataset` of `(28, 28, 1)` images.

    Raises:
        FileNotFoundError: If one of the four files is missing.
        OSError: If a file can't be read.
        ValueError: If a file is damaged.
    """
    arrays = []
    for part in ("train", "t10k"):
        for what, rank in (("images", 3), ("labels", 1)):
            name = f"{part}-{what}-idx{rank}-ubyte"
            path = _find(folder, name)
            if path is None:
                raise FileNotFoundError(
                    "The four IDX files must lie in one folder. "
                    f"Received: {folder} without {name} or {name}.gz. "
                    "Copy it there."
                )
            arrays.append(read(path, rank))
    x_train, y_train, x_test, y_test = arrays
    return Dataset(
        "fashion_mnist",
        x_train[..., None],
        y_train.astype(np.int32),
        x_test[..., None],
        y_test.astype(np.int32),
        classes=_CLASSES,
        flip=True,
        padding=2,
    )


def read(path: Path, rank: int) -> np.ndarray:
    """Reads one IDX file of bytes.

    The file holds a magic number (two zero bytes, type, rank), then the sizes
    as big-endian 32-bit numbers, then the values.

    Args:
        path: The file; compressed if its name ends in `.gz`.
        rank: Number of dimensions that the array must have.

    Returns:
        uint8 array of that rank.

    Raises:
        ValueError: If the file is damaged or of another kind.
        OSError: If the file cannot be read.
    """
    magic = bytes([0, 0, _UNSIGNED_BYTE, rank])
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            header = file.read(4 + 4 * rank)
            if header[:4] != magic or len(header) < 4 + 4 * rank:
                raise _damaged(path, rank, f"its header {header.hex(' ')}")
            shape = tuple(np.frombuffer(header, ">u4", rank, 4).tolist())
            size = math.prod(shape)
            # One byte more than needed shows whether the file is too long.
            body = file.read(size + 1) if size < _MOST_BYTES else b""
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, rank, f"{error}") from error
    if len(body) != size:
        raise _damaged(
            path,
            rank,
            f"sizes {shape} for {'more than ' * (len(body) > size)}"
            f"{min(len(body), size)} values",
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _find(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _damaged(path: Path, rank: int, found: str) -> ValueError:
    return ValueError(
        f"{path} must be a whole IDX file of unsigned bytes in {rank} "
        f"dimension(s). Received: {found}. Fetch it anew."
    )
