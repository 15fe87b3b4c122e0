"""Writes a folder of generated JPEG files for training and test.

python -m benchmarks.speed.photos <folder> <training images> [<test images>]

The folder gets `train/<class>/` and `test/<class>/`. An image has 256 x 256
pixels: smooth colours that depend on its class, with a grain, so that a file is
as large as that of a photo. The same arguments give the same files. Files that
are there already are not written again.
"""

import concurrent.futures
import os
import pathlib
import sys

import numpy as np
import tensorflow as tf

CLASSES, SIDE = 100, 256


def photo(number: int) -> bytes:
    """Draws the image of a number as JPEG; its class is `number % CLASSES`."""
    rng = np.random.default_rng(number)
    colours = np.random.default_rng(number % CLASSES).uniform(0, 255, (6, 6, 3))
    coarse = colours + rng.normal(0, 40, (6, 6, 3))
    smooth = tf.image.resize(coarse, (SIDE, SIDE), "bicubic")
    grain = rng.normal(0, 8, (SIDE, SIDE, 1)).astype("float32")
    pixels = tf.saturate_cast(smooth + grain, tf.uint8)
    return tf.io.encode_jpeg(pixels, quality=85).numpy()


def write(folder: str | os.PathLike, training: int, test: int) -> None:
    """Writes the files that are missing."""
    folder = pathlib.Path(folder)
    parts = ("train", 0, training), ("test", training, test)

    def write_one(part, number):
        path = folder / part / f"{number % CLASSES:03}" / f"{number:07}.jpg"
        if not path.exists():
            path.write_bytes(photo(number))

    for part, _, count in parts:
        for each in range(min(count, CLASSES)):
            (folder / part / f"{each:03}").mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for part, first, count in parts:
            numbers = range(first, first + count)
            for _ in pool.map(write_one, [part] * count, numbers):
                pass


if __name__ == "__main__":
    write(sys.argv[1], *(int(each) for each in (*sys.argv[2:], 1000)[:2]))
