"""Reads an image file as an array, and resizes images."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mhgd.checks import check_integer

SUFFIXES = (".jpeg", ".jpg", ".png")

# These limits are checked before decoding, because a small compressed file can
# expand to a huge image.
_MOST_BYTES = 20 * 2**20
_MOST_PIXELS = 2**26
_MOST_SCANS = 100  # scans in a progressive JPEG; ten are usual
_PNG = b"\x89PNG\r\n\x1a\n"
# The headers of an image of one grey pixel.
_JPEG_HEADER = bytes.fromhex(
    "ffd8 ffc0 000b 08 0001 0001 01 01 11 00 ffda 0008 01 01 00 00 3f 00"
)
_PNG_HEADER = _PNG + bytes.fromhex("0000000d 49484452 00000001 00000001")


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


def decode(data: tf.Tensor) -> tf.Tensor:
    """Decodes an image in a graph, within the limits of `read_file`.

    TensorFlow's error for a damaged or too large image doesn't name the file.

    Args:
        data: Content of a PNG or JPEG file, a scalar string.

    Returns:
        uint8 `(height, width, 3)`.
    """
    # Both kinds of headers are read, each of a file of its kind: a `tf.cond`
    # would take as long as decoding.
    is_jpeg = tf.io.is_jpeg(data)
    of_jpeg = tf.image.extract_jpeg_shape(tf.where(is_jpeg, data, _JPEG_HEADER))
    # Of a PNG file, the first chunk.
    of_png = tf.io.decode_raw(
        tf.strings.substr(tf.where(is_jpeg, _PNG_HEADER, data), 16, 8),
        tf.int32,
        little_endian=False,
    )
    height, width = tf.unstack(
        tf.where(is_jpeg, of_jpeg[:2], of_png[:2]), num=2
    )
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    scans = tf.size(tf.strings.split(data, b"\xff\xda")) - 1
    fits = (
        (tf.strings.length(data) <= _MOST_BYTES)
        & (pixels <= _MOST_PIXELS)
        & (scans <= _MOST_SCANS)
    )
    data = tf.where(fits, data, "")  # which no decoder takes
    return tf.io.decode_image(data, channels=3, expand_animations=False)


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
            f"of {len(data)} bytes: {reason(error)}. "
            "Replace or delete it."
        ) from error


def reason(error: Exception) -> str:
    """Gives an error's reason, without the names of TensorFlow's functions."""
    text = getattr(error, "message", str(error)).splitlines()[0]
    return re.sub(r"\{\{.*?\}\}|\[Op:.*", "", text).strip(" .")


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
