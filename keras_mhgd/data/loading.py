"""Finds a data set by name, folder or file."""

import dataclasses
import difflib
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_mhgd.data import folders, idx, images, npz, tfds
from keras_mhgd.data.dataset import Dataset
from keras_mhgd.data.files import OnDemand
from keras_mhgd.data.tokens import Tokens

# name, name:1.2.3, name/config, name/config:1.2.3
_CATALOGUE_NAME = re.compile(r"[a-z]\w*(/[\w.\-]+)?(:[\w.*]+)?", re.ASCII)


def names() -> tuple[str, ...]:
    """Lists the built-in names, sorted."""
    return tuple(sorted(_READERS))


def load(
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    subset: int | None = None,
    download: bool = False,
    image_size: tuple[int, int] | None = None,
) -> Dataset:
    """Reads a labelled set of images or words.

    Image folders of more than 512 MB are not read into memory: their images
    are read when they are needed.

    Args:
        name: One of `names()`, any image-classification set of TensorFlow
            Datasets (`"mnist"`, `"emnist/letters"`), the path of a folder
            `<split>/<class>/<image>`, or the path of an `.npz` file with
            `x_train`, `y_train`, `x_test`, `y_test`. `"languages"` and `.npz`
            files with `tokens` hold sequences of tokens.
        data_dir: Folder that holds the set, unless the set is embedded in the
            package. Defaults to `None`: the folder of Debian's package for
            `fashion_mnist`, otherwise the folder of TensorFlow Datasets.
        subset: Number of training images to keep. The part is class-balanced,
            independent of any seed, and normalised as in the full set.
            Defaults to `None`: all.
        download: Whether TensorFlow Datasets may download and prepare the set.
        image_size: Height and width that all images are resized to, pixels.
            Needed if the images of a set differ in size. Defaults to `None`.

    Returns:
        `Dataset`; `Tokens` if the set holds sequences of tokens.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If the name is unknown, or the files do not hold a
            labelled image set.
        FileNotFoundError: If the set is not found. The message says how to
            get the set.
        OSError: If a file can't be read.
        ConnectionError: If the set must be downloaded and there is no network.

    Example:
        >>> glyphs = keras_mhgd.data.load("glyphs", subset=2000)
        >>> glyphs.steps_per_epoch(batch_size=64)
        32
        >>> stream = glyphs.train(batch_size=64, seed=1)
        >>> x, y = next(iter(stream))
        >>> x.shape
        TensorShape([64, 28, 28, 1])
    """
    if not isinstance(name, str | os.PathLike):
        raise TypeError(
            "`name` must be a string or a path. "
            f"Received: name={name!r} of type {type(name).__name__}. "
            f"{_choices('')}"
        )
    name = os.fspath(name)
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    image_size = None if image_size is None else images.check_size(image_size)
    dataset = _read(name, data_dir, download, image_size)
    if image_size and isinstance(dataset, Tokens):
        raise ValueError(
            f"`image_size` must be left out for {dataset.name}, which holds "
            f"sequences of tokens. Received: image_size={image_size}."
        )
    # Image files were resized as they were read. Sets that are stored as
    # arrays still have their own size.
    if image_size not in (None, dataset.input_shape[:2]):
        dataset = _resized(dataset, image_size)
    return dataset if subset is None else dataset.take(subset)


def load_unlabeled(
    source: str | os.PathLike,
    name: str | os.PathLike,
    image_size: tuple[int, int],
    data_dir: str | os.PathLike | None = None,
) -> np.ndarray | OnDemand:
    """Reads images without labels, for `Dataset.with_unlabeled`.

    Args:
        source: A folder of images, or a split of the set in TensorFlow
            Datasets, such as `"unlabelled"` of `"stl10"`.
        name: Name of the set with labels, as in `load`.
        image_size: Height and width to resize to, pixels.
        data_dir: As in `load`.

    Returns:
        uint8 `(count, height, width, channels)`: an array, or images that are
        read when they are needed, for more than 512 MB.

    Raises:
        FileNotFoundError: If there is no such folder, or the set is not found.
        ValueError: If there are no images, a file is damaged, or the set has no
            such split.
    """
    source, name = os.fspath(source), os.fspath(name)
    if _is_folder(source) or not _is_in_catalogue(name):
        return folders.read_unlabeled(source, image_size)
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    return tfds.read_split(name, source, data_dir, image_size)


def _is_folder(text: str) -> bool:
    return os.path.isdir(os.path.expanduser(text))


def _is_in_catalogue(name: str) -> bool:
    """Checks whether a name may be one of TensorFlow Datasets."""
    if name in _READERS:
        return name in ("cifar10", "cifar100", "fashion_mnist")
    return (
        _CATALOGUE_NAME.fullmatch(name) is not None
        and not name.endswith(".npz")
        and not _is_folder(name)
    )


def _resized(dataset: Dataset, size: tuple[int, int]) -> Dataset:
    """Resizes all images of a set, and takes a padding that suits the size."""
    resized = {}
    for field in ("x_train", "x_test"):
        whole = getattr(dataset, field)
        # Chunks bound the memory: the resized images are float32 at first,
        # which takes four times the bytes of uint8.
        chunks = range(0, len(whole), 1024)
        resized[field] = np.concatenate(
            [images.resize(whole[i : i + 1024], size).numpy() for i in chunks]
        )
    padding = min(dataset.padding, images.default_padding(min(size)))
    return dataclasses.replace(
        dataset, padding=padding, moments=None, **resized
    )


def _read(
    name: str,
    data_dir: Path | None,
    download: bool,
    image_size: tuple[int, int] | None,
) -> Dataset:
    if name in _READERS:
        return _READERS[name](data_dir, download, image_size)
    if name.endswith(".npz"):
        return npz.read(Path(data_dir or "", name).expanduser())
    if _is_folder(name):
        return folders.read_image_folder(Path(name).expanduser(), image_size)
    if not _CATALOGUE_NAME.fullmatch(name):
        raise ValueError(
            "`name` must be a built-in name, a name of TensorFlow Datasets, "
            f"an existing image folder or an .npz file. Received: {name!r}. "
            f"{_choices(name)}"
        )
    # A folder's name may be that of a set, too.
    hint = f"There is no folder {os.path.abspath(name)} either. "
    return tfds.read(
        name, data_dir, download, image_size, hint + _choices(name)
    )


def _read_cifar(name: str, *options) -> Dataset:
    return tfds.read(name, *options, hint=_choices(name))


def _read_fashion_mnist(
    data_dir: Path | None,
    download: bool,
    image_size: tuple[int, int] | None,
) -> Dataset:
    folder = data_dir or idx.DEBIAN_FOLDER
    if idx.is_folder(folder):
        return idx.read_fashion_mnist(folder)
    hint = (
        f"There are no IDX files in {folder} either: `apt-get install "
        f"dataset-fashion-mnist` puts them in {idx.DEBIAN_FOLDER}. "
    )
    return tfds.read(
        "fashion_mnist",
        data_dir,
        download,
        image_size,
        hint + _choices("fashion_mnist"),
    )


def _choices(name: str) -> str:
    unknown = name not in _READERS
    close = difflib.get_close_matches(name, names()) if unknown else ()
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return (
        f"{hint}Built-in names: {', '.join(names())}; else the path of an "
        "image folder or of an .npz file."
    )


def _need_folder(name: str, data_dir: Path | None) -> Path:
    if data_dir is None:
        raise FileNotFoundError(
            f"{name!r} must be read from a folder. Received: data_dir=None. "
            "Pass the folder as data_dir / --data_dir."
        )
    return data_dir


# Each reader takes (data_dir, download, image_size).
_READERS: dict[str, Callable[..., Dataset]] = {
    "cifar10": functools.partial(_read_cifar, "cifar10"),
    "cifar100": functools.partial(_read_cifar, "cifar100"),
    "fashion_mnist": _read_fashion_mnist,
    "glyphs": lambda *_: npz.read_glyphs(),
    "languages": lambda *_: npz.read_languages(),
    "image_folder": lambda data_dir, _, image_size: folders.read_image_folder(
        _need_folder("image_folder", data_dir), image_size
    ),
    "tiny_imagenet": lambda data_dir, _, image_size: folders.read_tiny_imagenet(
        _need_folder("tiny_imagenet", data_dir), image_size
    ),
}
