"""Reads data sets of TensorFlow Datasets.

Importing tensorflow_datasets takes about eleven seconds. A download without a
network fails only after minutes. A cheap check therefore comes before each of
the two.
"""

import contextlib
import functools
import itertools
import os
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mhgd.data import images
from keras_mhgd.data.dataset import Dataset
from keras_mhgd.data.files import kept_if_small
from keras_mhgd.data.records import (
    ArrayRecords,
    Reader,
    Records,
    TFRecords,
    damaged,
    kept_beside,
)

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
    opened = _opened(name, data_dir, download, image_size, hint)
    splits = opened.splits
    held_out = next((s for s in ("test", "validation") if s in splits), None)
    if "train" not in splits or held_out is None:
        raise ValueError(
            f"{name}: there must be a split `train` and a split `test` or "
            f"`validation`. Received: {', '.join(splits)}. Export the images "
            "to a folder or an .npz file."
        )
    if not all(map(opened.has, ("train", held_out))):
        raise opened.not_found
    parts = [
        (opened.images(split), opened.labels(split))
        for split in ("train", held_out)
    ]
    digits = any(word in name for word in ("mnist", "svhn"))
    side = min(parts[0][0].shape[1:3])
    return Dataset(
        name,
        *parts[0],
        *parts[1],
        classes=opened.classes,
        # A mirrored digit or letter no longer has its label.
        flip=name.startswith("fashion_mnist") or not digits,
        padding=2 if "mnist" in name else images.default_padding(side),
    )


def read_split(
    name: str,
    split: str,
    data_dir: Path | None = None,
    image_size: tuple[int, int] | None = None,
) -> np.ndarray | Records:
    """Reads the images of a split of a prepared set, without labels.

    Args:
        name: As in `read`.
        split: Name of the split, such as `"unlabelled"`.
        data_dir: As in `read`.
        image_size: As in `read`.

    Returns:
        uint8 `(count, height, width, channels)`: an array, or `Records` for
        more than 512 MB.

    Raises:
        FileNotFoundError: If the set is not found.
        ValueError: If the set has no such split.
    """
    opened = _opened(name, data_dir, image_size=image_size)
    if split not in opened.splits:
        raise ValueError(
            f"{name}: the images without labels must be a folder or a split. "
            f"Received: {split!r}. Its splits are {', '.join(opened.splits)}."
        )
    if not opened.has(split):
        raise opened.not_found
    return opened.images(split)


def _opened(
    name: str,
    data_dir: Path | None,
    download: bool = False,
    image_size: tuple[int, int] | None = None,
    hint: str = "",
) -> "_Prepared":
    """Finds a prepared set, or prepares it."""
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
        builder = tfds.builder(name, data_dir=str(root))
        if download:
            builder.download_and_prepare()
        info = builder.info
        if not info.splits:
            raise _not_found(name, root, hint)
        splits = {
            each: dict(
                zip(
                    map(str, info.splits[each].filepaths),
                    info.splits[each].shard_lengths,
                    strict=True,
                )
            )
            for each in info.splits
            if info.splits[each].num_examples
        }
    # TFDS raises an AssertionError for a version that does not exist.
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:
        if not download:
            raise _not_found(name, root, hint) from error
        raise ValueError(
            "`name` must be a set of TensorFlow Datasets. "
            f"Received: {name!r}. Choose one of "
            f"https://www.tensorflow.org/datasets. {hint}"
        ) from error
    not_found = _not_found(name, root, hint)
    return _Prepared(tfds, name, info, splits, image_size, not_found)


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


class _Prepared:
    """Reads the splits of a prepared set.

    Attributes:
        splits: By the name of each split, its files and how many records each
            has.
        classes: Names of the classes.
        not_found: The error if a split's files are missing.
    """

    def __init__(self, tfds, name, info, splits, image_size, not_found):
        self._tfds, self._name, self._features = tfds, name, info.features
        self.splits, self.not_found = splits, not_found
        self._image_key, self._label_key = _keys(name, info, tfds)
        self.classes = tuple(info.features[self._label_key].names)
        *size, channels = info.features[self._image_key].shape
        if image_size is None and None in size:
            raise ValueError(
                f"{name}: the images must be of one size. Received: images of "
                f"shape {info.features[self._image_key].shape}. Pass "
                "image_size=(height, width) to resize them: --image_size."
            )
        self._resizes = image_size is not None
        self._size, self._channels = image_size or size, channels or 3
        # Images and labels of a split have one reader.
        self._reader = functools.cache(self._read)

    def has(self, split: str) -> bool:
        """Checks whether all files of a split are there."""
        return all(map(os.path.exists, self.splits[split]))

    def images(self, split: str) -> np.ndarray | Records:
        """Gives the images of a split."""
        return kept_if_small(
            Records(
                self._reader(split),
                self._image,
                self._size,
                self._resizes,
                self._channels,
                self._named(split),
            )
        )

    def labels(self, split: str) -> np.ndarray:
        """Gives the labels of a split, which are read once in its life."""
        return kept_beside(
            list(self.splits[split]),
            "labels",
            functools.partial(self._read_labels, split),
        )

    def _read_labels(self, split: str) -> np.ndarray:
        """Reads the labels: whole records, as they hold the images too."""
        reader = self._reader(split)
        labels = reader.stream().map(
            tf.autograph.experimental.do_not_convert(self._label),
            num_parallel_calls=os.cpu_count(),
        )
        found = []
        try:
            for label in labels.as_numpy_iterator():
                found.append(label)
        except tf.errors.OpError as error:
            raise damaged(
                self._named(split), reader, len(found), error
            ) from error
        return np.array(found)

    def _read(self, split: str) -> Reader:
        paths, lengths = zip(*self.splits[split].items(), strict=True)
        if ".array_record" in os.path.basename(paths[0]):
            return ArrayRecords(paths, lengths)
        return TFRecords(paths, lengths)

    def _named(self, split: str) -> str:
        return f"{self._name}, split {split}"

    def _image(self, data: tf.Tensor) -> tf.Tensor:
        return self._features.deserialize_example(data)[self._image_key]

    def _label(self, data: tf.Tensor) -> tf.Tensor:
        # Without decoding the image.
        skip = self._tfds.decode.SkipDecoding()
        example = self._features.deserialize_example(
            data, decoders={self._image_key: skip}
        )
        return tf.cast(example[self._label_key], tf.int32)
