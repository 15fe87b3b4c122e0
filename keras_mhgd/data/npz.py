"""Reads data sets from `.npz` files, including the embedded sets."""

import dataclasses
import importlib.resources
from pathlib import Path

import numpy as np

from keras_mhgd.data import images
from keras_mhgd.data.dataset import Dataset
from keras_mhgd.data.tokens import Tokens
from keras_mhgd.storage.arrays import read_arrays

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_MOST_CLASSES = 2**16


def read_glyphs() -> Dataset:
    """Reads the embedded set: a hundred characters in many typefaces.

    Returns:
        `Dataset` of 20000 training and 5000 test images `(28, 28, 1)`, white
        on black.
    """
    dataset = _read_embedded("glyphs100.npz")
    return dataclasses.replace(dataset, name="glyphs", padding=2)


def read_languages() -> Tokens:
    """Reads the other embedded set: words of forty languages.

    Returns:
        `Tokens` of 60000 training and 10000 test words, whose classes are the
        languages. A word is a row of 20 character numbers.
    """
    return dataclasses.replace(
        _read_embedded("languages40.npz"), name="languages"
    )


def _read_embedded(name: str) -> Dataset:
    resource = importlib.resources.files("keras_mhgd.data") / name
    with importlib.resources.as_file(resource) as path:
        return read(path)


def read(path: Path) -> Dataset:
    """Reads `x_train`, `y_train`, `x_test`, `y_test` from one `.npz` file.

    Args:
        path: The file. Images are uint8 `(count, height, width)` or with
            channels last, labels integers `(count,)` or `(count, 1)`. An
            optional `classes` names the labels. A file with `tokens` holds
            sequences, integers `(count, length)`: see `Tokens`.

    Returns:
        `Dataset`, or `Tokens`. Images are not mirrored, because the file does
        not say whether a mirrored image keeps its label.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If the file can't be read.
        ValueError: If the file is damaged, lacks an array, or holds an array
            of another kind.
    """
    if not path.is_file():
        raise FileNotFoundError(
            "A data set that ends in .npz must be a file. "
            f"Received: {path}, which is none. Mend the path."
        )
    arrays = _read_arrays(path)
    labels = {
        key: _as_labels(path, key, arrays[key]) for key in ("y_train", "y_test")
    }
    if "classes" in arrays:
        classes = _as_names(path, "classes", arrays["classes"])
    else:
        most = max(values.max() for values in labels.values())
        classes = tuple(str(label) for label in range(most + 1))
    samples = {key: arrays[key] for key in ("x_train", "x_test")}
    if "tokens" in arrays:
        tokens = _as_names(path, "tokens", arrays["tokens"])
        return Tokens(
            str(path), **samples, **labels, classes=classes, tokens=tokens
        )
    pixels = {
        key: _as_images(path, key, values) for key, values in samples.items()
    }
    padding = images.default_padding(min(pixels["x_train"].shape[1:3]))
    return Dataset(
        str(path), **pixels, **labels, classes=classes, padding=padding
    )


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        found = read_arrays(path, (*_KEYS, "classes", "tokens"))
    except ValueError as error:
        raise ValueError(
            f"{path} must be a whole .npz file without pickled objects. "
            f"Received: {error}. Write it anew with numpy.savez_compressed."
        ) from error
    if set(_KEYS) <= set(found):
        return found
    raise ValueError(
        f"{path} must hold {', '.join(_KEYS)} and may hold classes. "
        f"Received: {', '.join(sorted(found)) or 'none of these'}. "
        "Write it anew with numpy.savez_compressed under these keys."
    )


def _as_names(path: Path, key: str, names: np.ndarray) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name in names.ravel())
    except SystemError as error:  # NumPy raises it for strings of length 0
        raise ValueError(
            f"{path}: `{key}` must be names. Received: {error}. "
            "Write them anew."
        ) from error


def _as_images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise ValueError(
            f"{path}: `{key}` must be a non-empty uint8 array of shape (count, "
            "height, width) or (count, height, width, channels). Received: "
            f"{images.dtype} array of shape {images.shape}. Convert the images "
            "to 0..255."
        )
    return images[..., None] if images.ndim == 3 else images


def _as_labels(path: Path, key: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or not labels.size:
        raise ValueError(
            f"{path}: `{key}` must be a non-empty integer array of shape "
            f"(count,) or (count, 1). Received: {labels.dtype} array of shape "
            f"{labels.shape}. Convert the labels to class numbers."
        )
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        raise ValueError(
            f"{path}: `{key}` must lie in [0, {_MOST_CLASSES}). Received: "
            f"labels from {labels.min()} to {labels.max()}. Number the classes "
            "from 0."
        )
    return labels.astype(np.int32)
