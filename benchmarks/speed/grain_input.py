"""Compares reading image files by Grain with this library's streams, in turns.

python -m benchmarks.speed.grain_input <folder> [<rounds>]

The folder is one of `benchmarks.speed.photos`. Both read, decode, crop to 224
pixels at random, normalise and batch. Grain decodes by OpenCV, in threads of
this process or in processes of its own.
"""

import os
import pathlib
import sys

import numpy as np

try:
    import cv2
    import grain
except ImportError as error:
    raise SystemExit(
        "This program needs Grain and OpenCV, which cannot be imported. "
        f"Received: {error}. "
        "Run `pip install grain opencv-python-headless`."
    ) from error

BATCH, CROP, SIDE = 32, 224, 256


def by_grain(
    folder: str,
    mean: np.ndarray,
    deviation: np.ndarray,
    threads: int,
    processes: int = 0,
) -> grain.IterDataset:
    """Makes batches of normalised crops and their labels, without end."""
    files = sorted(map(str, pathlib.Path(folder, "train").glob("*/*.jpg")))
    names = sorted({os.path.basename(os.path.dirname(file)) for file in files})
    labels = {name: label for label, name in enumerate(names)}
    scale = 1 / deviation

    def crop(file, rng):
        image = cv2.imread(file, cv2.IMREAD_COLOR_RGB)
        top, left = rng.integers(0, SIDE - CROP + 1, 2)
        part = image[top : top + CROP, left : left + CROP].astype(np.float32)
        name = os.path.basename(os.path.dirname(file))
        return (part - mean) * scale, np.int32(labels[name])

    batches = (
        grain.MapDataset.source(files)
        .seed(0)
        .shuffle()
        .repeat()
        .random_map(crop)
        .to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=128)
        )
        .batch(BATCH)
    )
    if processes:
        return batches.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=processes, per_worker_buffer_size=4
            )
        )
    return batches


def main(folder: str, rounds: str = "5") -> None:
    """Prints images a second of each, in turns."""
    # Processes of Grain import this module, and need no TensorFlow.
    import keras

    import keras_mhgd
    from benchmarks.speed.large_sets import rate

    dataset = keras_mhgd.data.load(folder, image_size=(SIDE, SIDE))
    dataset = dataset.augmented(keras.layers.RandomCrop(CROP, CROP))
    streams = {"ours": dataset.train(BATCH)}
    for threads, processes in ((2, 0), (4, 0), (16, 0), (2, 1), (2, 2)):
        name = f"Grain, {threads} threads, {processes} processes"
        streams[name] = by_grain(
            folder, dataset.mean, dataset.std, threads, processes
        )
    rates = {name: [] for name in streams}
    for _ in range(int(rounds)):
        for name, stream in streams.items():
            rates[name].append(rate(stream, steps=20))
    for name, found in rates.items():
        ratios = np.divide(rates["ours"], found)
        low, middle, high = np.percentile(ratios, (0, 50, 100))
        print(
            f"{name}: {' '.join(f'{each:.0f}' for each in found)} images a "
            f"second; ours / this: {middle:.2f} ({low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
