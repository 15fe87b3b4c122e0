"""Reads image folders `<split>/<class>/<image>` and Tiny ImageNet."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_mhgd.data import images
from keras_mhgd.data.dataset import Dataset
from keras_mhgd.data.files import Files, kept_if_small

_TEST_FOLDERS = ("test", "val", "validation")


def read_image_folder(
    folder: Path, image_size: tuple[int, int] | None = None
) -> Dataset:
    """Reads `train/<class>/<image>` and `test/<class>/<image>`.

    Symbolic links are followed wherever they point, because image folders are
    often made of links.

    Args:
        folder: Folder that holds `train` and `test`. The folder `test` may
            also be called `val` or `validation`. Labels follow the sorted
            names of the classes.
        image_size: Height and width to resize to, pixels, or None.

    Returns:
        `Dataset` of RGB images, mirrored in training.

    Raises:
        FileNotFoundError: If a folder is missing.
        OSError: If a file or folder can't be read.
        ValueError: If a class has no images, a class of the test images has no
            training images, or an image is damaged.
    """
    train = folder / "train"
    held_out = next(
        (folder / n for n in _TEST_FOLDERS if (folder / n).is_dir()), None
    )
    if not train.is_dir() or held_out is None:
        raise FileNotFoundError(
            "An image folder must hold train/<class>/<image> and "
            f"{' or '.join(_TEST_FOLDERS)}/<class>/<image>. Received: "
            f"{folder} {_contents(folder)}. Move the images there."
        )
    classes = tuple(_class_names(train))
    unknown = sorted(set(_class_names(held_out)) - set(classes))
    if not classes or unknown:
        raise ValueError(
            f"The classes in {held_out} must be among those of {train}. "
            f"Received: {unknown or 'no classes'}, not among "
            f"{list(classes)[:10]}. Rename or remove them."
        )
    train = _with_labels({c: _images_in(train / c) for c in classes}, classes)
    held_out = _with_labels(
        {c: _images_in(held_out / c) for c in _class_names(held_out)}, classes
    )
    return _dataset(str(folder), train, held_out, classes, image_size)


def read_tiny_imagenet(
    folder: Path, image_size: tuple[int, int] | None = None
) -> Dataset:
    """Reads Tiny ImageNet from its unpacked archive.

    Args:
        folder: `tiny-imagenet-200` or the folder that holds it. The validation
            images become the test set, because the labels of the original
            test images were never published.
        image_size: Height and width to resize to, pixels, or None.

    Returns:
        `Dataset` of RGB images, labels in the order of `wnids.txt`.

    Raises:
        FileNotFoundError: If a file of the layout is missing.
        OSError: If a file or folder can't be read.
        ValueError: If a file is damaged.
    """
    if (folder / "tiny-imagenet-200").is_dir():
        folder = folder / "tiny-imagenet-200"
    annotations = folder / "val" / "val_annotations.txt"
    for path in (folder / "wnids.txt", folder / "words.txt", annotations):
        if not path.is_file():
            raise FileNotFoundError(
                "Tiny ImageNet must hold wnids.txt, words.txt, "
                "train/<wnid>/images and val/val_annotations.txt. Received: "
                f"{folder} without {path.relative_to(folder)}. Unpack "
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip and pass its "
                "folder as data_dir / --data_dir."
            )
    wnids = [row[0] for row in _table(folder / "wnids.txt", columns=1)]
    foreign = [wnid for wnid in wnids if not _is_name(wnid)]
    if foreign:
        raise ValueError(
            f"{folder / 'wnids.txt'} must name folders beside each other. "
            f"Received: {foreign[0]!r}. Unpack the archive anew."
        )
    words = {row[0]: row[1] for row in _table(folder / "words.txt", columns=2)}
    train = {w: _images_in(folder / "train" / w / "images") for w in wnids}
    held_out = {wnid: [] for wnid in wnids}
    for file, wnid, *_ in _table(annotations, columns=2):
        if wnid not in held_out or not _is_name(file):
            raise ValueError(
                f"{annotations} must name files beside it and classes of "
                f"wnids.txt. Received: {wnid!r} for {file!r}. Unpack the "
                "archive anew."
            )
        held_out[wnid].append(str(annotations.parent / "images" / file))
    return _dataset(
        "tiny_imagenet",
        _with_labels(train, wnids),
        _with_labels(held_out, wnids),
        tuple(words.get(wnid, wnid) for wnid in wnids),
        image_size,
    )


def read_unlabeled(
    folder: str | os.PathLike, image_size: tuple[int, int]
) -> np.ndarray | Files:
    """Reads all images of a folder and of the folders in it.

    Args:
        folder: The folder.
        image_size: Height and width to resize to, pixels.

    Returns:
        uint8 `(count, height, width, 3)`, sorted by path: an array, or `Files`
        for more than 512 MB.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no images, or a file is damaged.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            "Images without labels must be in a folder. "
            f"Received: {folder}, which is none. Mend the path."
        )
    paths = [
        os.path.join(parent, name)
        for parent, folders, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(images.SUFFIXES)
    ]
    _require_images(paths, folder)
    return kept_if_small(Files(sorted(paths), image_size))


def _dataset(
    name: str,
    train: tuple[list[str], np.ndarray],
    held_out: tuple[list[str], np.ndarray],
    classes: tuple[str, ...],
    image_size: tuple[int, int] | None,
) -> Dataset:
    x_train = Files(train[0], image_size)
    x_test = Files(held_out[0], image_size or x_train.shape[1:3])
    x_train, x_test = kept_if_small(x_train), kept_if_small(x_test)
    padding = images.default_padding(min(x_train.shape[1:3]))
    return Dataset(
        name, x_train, train[1], x_test, held_out[1], classes, True, padding
    )


def _with_labels(
    files: dict[str, list[str]], classes: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    labels = {name: label for label, name in enumerate(classes)}
    paths = [path for group in files.values() for path in group]
    return paths, np.array(
        [labels[name] for name, group in files.items() for _ in group], np.int32
    )


def _class_names(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _images_in(folder: Path) -> list[str]:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    # A path object for each of a million files would take long.
    paths = [
        os.path.join(folder, name)
        for name in names
        if name.lower().endswith(images.SUFFIXES)
    ]
    _require_images(paths, folder)
    return paths


def _require_images(paths: Sequence[str], folder: Path) -> None:
    if not paths:
        raise ValueError(
            f"A class or folder must have images ({', '.join(images.SUFFIXES)})"
            f". Received: none in {folder}. Add some or leave it out."
        )


def _is_name(text: str) -> bool:
    """Checks that a text names an entry of a folder, not a path elsewhere."""
    return text not in (".", "..") and Path(text).parts == (text,)


def _table(path: Path, columns: int) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} must be UTF-8 text. Received: {error}. "
            "Unpack the archive anew."
        ) from error
    rows = [line.split("\t") for line in lines if line.strip()]
    short = [row for row in rows if len(row) < columns]
    if not rows or short:
        raise ValueError(
            f"{path} must have {columns} or more columns, separated by tabs. "
            f"Received: {short[0] if short else 'no lines'}. "
            "Unpack the archive anew."
        )
    return rows


def _contents(folder: Path) -> str:
    if not folder.is_dir():
        return "which is no folder"
    return f"with {sorted(p.name for p in folder.iterdir())[:10]}"
