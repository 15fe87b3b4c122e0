"""Reads data sets of TensorFlow Datasets.

Importing tensorflow_datasets takes about eleven seconds. A download without a
network fails only after minutes. A cheap check therefore comes before each of
the two.
"""

import contextlib
import itertools
import os
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np

from keras_mhgd.data import images
from keras_mhgd.data.dataset import Dataset

_SERVER = "storage.googleapis.com"
_PROBE_SECONDS = 3.0


def read(
    name: str,
    data_dir: Path | None = None,
    download: bool = False,
    image_size: tuple[int, int] | None = None,
    hint: str = "",
) -> Dataset:
    """Reads an image-classification set of TensorFlow Datasets.

    Args:
        name: Name of the set in TensorFlow Datasets, with a configuration and
            a version if needed.
        data_dir: Folder of prepared sets. Defaults to `$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.
        download: Whether to download and prepare a set that is not prepared.
        image_size: Height and width to resize to, pixels, or None.
        hint: Further advice for the message when the set is not found.

    Returns:
        `Dataset`.

    Raises:
        FileNotFoundError: If the set is not found and may not be downloaded.
        ConnectionError: If the set must be downloaded and there is no network.
        ValueError: If the set does not exist or holds no labelled images.
        ImportError: If tensorflow_datasets is missing.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = (data_dir or Path(default)).expanduser()
    if not _is_prepared(name, root):
        if not download:
            raise _not_found(name, root, hint)
        _check_online(name, root)
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs the package tensorflow-datasets, which cannot be "
            f"imported. Received: {error}. "
            "Run `pip install tensorflow-datasets importlib_resources`."
        ) from error
    try:
        splits, info = tfds.load(
            name, data_dir=str(root), download=download, with_info=True
        )
    # TFDS raises an AssertionError for a version that does not exist.
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:
        if not download:
            raise _not_found(name, root, hint) from error
        raise ValueError(
            "`name` must be a set of TensorFlow Datasets. "
            f"Received: {name!r}. Choose one of "
            f"https://www.tensorflow.org/datasets. {hint}"
        ) from error
    image_key, label_key = _keys(name, info, tfds)
    held_out = next((s for s in ("test", "validation") if s in splits), None)
    if "train" not in splits or held_out is None:
        raise ValueError(
            f"{name}: there must be a split `train` and a split `test` or "
            f"`validation`. Received: {', '.join(splits)}. Export the images "
            "to a folder or an .npz file."
        )
    parts = {
        part: _read_split(name, splits[split], image_key, label_key, image_size)
        for part, split in (("train", "train"), ("test", held_out))
    }
    digits = any(word in name for word in ("mnist", "svhn"))
    side = min(parts["train"][0].shape[1:3])
    return Dataset(
        name,
        *parts["train"],
        *parts["test"],
        classes=tuple(info.features[label_key].names),
        # A mirrored digit or letter no longer has its label.
        flip=name.startswith("fashion_mnist") or not digits,
        padding=2 if "mnist" in name else images.default_padding(side),
    )


def _is_prepared(name: str, root: Path) -> bool:
    name, _, version = name.partition(":")
    pattern = f"**/{version or '*'}/dataset_info.json"
    return any((root / name).glob(pattern))


def _not_found(name: str, root: Path, hint: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"The set {name!r} must be prepared before it is read. "
        f"Received: no such set in {root}. Pass download=True / --download "
        "to fetch it through TensorFlow Datasets, or pass the folder that "
        f"holds it as data_dir / --data_dir. {hint}".rstrip()
    )


def _check_online(name: str, root: Path) -> None:
    proxy = urllib.request.getproxies().get("https")
    address = urllib.parse.urlsplit(proxy or f"https://{_SERVER}")
    host, port = address.hostname or _SERVER, address.port or 443
    reached = threading.Event()

    def probe():
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), _PROBE_SECONDS).close()
            reached.set()

    # The probe needs a thread, because looking up a host name has no timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    if not reached.is_set():
        raise ConnectionError(
            f"Downloading {name!r} must reach the network. Received: no "
            f"answer from {host}:{port} within {_PROBE_SECONDS:.0f} s. "
            "Prepare the set on a connected machine, copy it to "
            f"{root / name.partition(':')[0]}, or use the embedded set "
            "'glyphs'."
        )


def _keys(name: str, info, tfds) -> tuple[str, str]:
    """Finds the keys of the image and of the label in an example."""
    pixels, labels = (
        [key for key, value in info.features.items() if isinstance(value, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    pairs = list(itertools.product(pixels, labels))
    if info.supervised_keys in pairs:
        return info.supervised_keys
    if len(pairs) == 1:
        return pairs[0]
    raise ValueError(
        f"{name}: an example must be an image and its class. Received: "
        f"supervised_keys={info.supervised_keys!r} of {sorted(info.features)}. "
        "Choose an image-classification set."
    )


def _read_split(
    name: str,
    split,
    image_key: str,
    label_key: str,
    image_size: tuple[int, int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    split = split.map(lambda example: (example[image_key], example[label_key]))
    if image_size is not None:
        split = split.map(
            lambda image, label: (images.resize(image, image_size), label)
        )
    elif not split.element_spec[0].shape.is_fully_defined():
        raise ValueError(
            f"{name}: the images must be of one size. Received: images of "
            f"shape {split.element_spec[0].shape}. Pass "
            "image_size=(height, width) to resize them."
        )
    pairs = list(split.batch(1024).as_numpy_iterator())
    if not pairs:
        raise ValueError(
            f"{name}: every split must hold images. Received: an empty one. "
            "Prepare the set anew with download=True / --download."
        )
    pixels, labels = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return pixels, labels.astype(np.int32)
