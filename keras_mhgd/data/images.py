"""Reads image files as arrays and resizes images."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mhgd.checks import check_integer
from keras_mhgd.data.dataset import Dataset

SUFFIXES = (".jpeg", ".jpg", ".png")

# These limits are checked before decoding, because a small compressed file can
# expand to a huge image.
_MOST_BYTES = 20 * 2**20
_MOST_PIXELS = 2**26
_MOST_SCANS = 100  # scans in a progressive JPEG; ten are usual
_PNG = b"\x89PNG\r\n\x1a\n"


def default_padding(side: int) -> int:
    """Gives the padding of the random crop that suits a size of images.

    Images with a shorter side of 32 pixels or more get the usual 4 pixels.
    Smaller images get an eighth of their shorter side.

    Args:
        side: Shorter side of the images, pixels.

    Returns:
        Largest shift of the random crop, pixels.
    """
    return min(4, side // 8)


def check_size(image_size: Sequence[int]) -> tuple[int, int]:
    """Checks a height and a width and returns them as a pair.

    Args:
        image_size: Height and width, pixels.

    Returns:
        The pair.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If `image_size` does not hold two positive numbers.
    """
    size = tuple(image_size) if isinstance(image_size, Sequence) else ()
    size = tuple(check_integer("image_size", side) for side in size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            "`image_size` must be a height and a width, both positive. "
            f"Received: image_size={image_size!r}. "
            "Pass a pair such as (64, 64)."
        )
    return size


def resize(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes images with antialiasing.

    Args:
        images: uint8 `(..., height, width, channels)`, rank 3 or 4.
        size: New height and width, pixels.

    Returns:
        uint8 tensor of the new height and width.
    """
    images = tf.image.resize(images, size, antialias=True)
    return tf.saturate_cast(tf.round(images), tf.uint8)


def resize_dataset(dataset: Dataset, size: tuple[int, int]) -> Dataset:
    """Resizes all images of a set.

    Args:
        dataset: The set.
        size: New height and width, pixels.

    Returns:
        `Dataset` with a padding that suits the new size.
    """
    resized = {}
    for field in ("x_train", "x_test"):
        images = getattr(dataset, field)
        # Chunks bound the memory: the resized images are float32 at first,
        # which takes four times the bytes of uint8.
        chunks = range(0, len(images), 1024)
        resized[field] = np.concatenate(
            [resize(images[i : i + 1024], size).numpy() for i in chunks]
        )
    padding = min(dataset.padding, default_padding(min(size)))
    return dataclasses.replace(
        dataset, padding=padding, moments=None, **resized
    )


def read_files(
    paths: Sequence[Path], image_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Reads image files as one array.

    Args:
        paths: PNG or JPEG files, at least one.
        image_size: Height and width to resize to, pixels, or None.

    Returns:
        uint8 `(count, height, width, 3)`.

    Raises:
        ValueError: If a file is damaged or too large, or if sizes differ and
            no `image_size` is given.
        OSError: If a file cannot be read.
    """

    def read(path):
        image = read_file(path)
        return image if image_size is None else resize(image, image_size)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        stacked = None
        # Without slices the pool would run ahead and hold every image.
        for start in range(0, len(paths), 1024):
            part = paths[start : start + 1024]
            for i, image in enumerate(pool.map(read, part), start):
                if stacked is None:
                    stacked = np.empty((len(paths), *image.shape), np.uint8)
                if image.shape != stacked.shape[1:]:
                    raise ValueError(
                        "The images must be of one size. "
                        f"Received: {paths[i]} of shape {image.shape}, "
                        f"{paths[0]} of shape {stacked.shape[1:]}. Pass "
                        "image_size=(height, width) to resize them."
                    )
                stacked[i] = image
    return stacked


def read_file(path: Path) -> tf.Tensor:
    """Reads one image file.

    Args:
        path: PNG or JPEG file.

    Returns:
        uint8 `(height, width, 3)`.

    Raises:
        ValueError: If the file is damaged or too large.
        OSError: If the file cannot be read.
    """
    if not path.is_file():  # reading a pipe or a device might never end
        raise ValueError(
            f"An image must be a file. Received: {path}. Replace or delete it."
        )
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(
            f"An image file must not be larger than {_MOST_BYTES} bytes. "
            f"Received: {path} of {path.stat().st_size} bytes. Scale it down."
        )
    try:
        height, width = _header(data)
        if height * width > _MOST_PIXELS:
            raise ValueError(
                f"An image must not have more than {_MOST_PIXELS} pixels. "
                f"Received: {path} of {height} x {width}. Scale it down."
            )
        return tf.io.decode_image(data, channels=3, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"An image file must be a whole PNG or JPEG. Received: {path} "
            f"of {len(data)} bytes: {error.message.splitlines()[0]} "
            "Replace or delete it."
        ) from error


def _header(data: bytes) -> tuple[int, int]:
    """Reads height and width from an image file without decoding it.

    In a PNG file the first chunk holds them.
    """
    if data.startswith(_PNG) and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = np.frombuffer(data, ">u4", 2, offset=16).tolist()
        return height, width
    if data.startswith(b"\xff\xd8"):
        # A scan can be a few bytes long, yet decoding it visits every pixel.
        if data.count(b"\xff\xda") > _MOST_SCANS:
            raise tf.errors.InvalidArgumentError(
                None, None, f"more than {_MOST_SCANS} scans."
            )
        return tuple(tf.image.extract_jpeg_shape(data)[:2].numpy().tolist())
    raise tf.errors.InvalidArgumentError(None, None, "neither PNG nor JPEG.")
