"""Measures how image folders that are larger than memory are read.

python -m benchmarks.speed.large_sets input <folder> [<rounds>]
python -m benchmarks.speed.large_sets start <folder>
python -m benchmarks.speed.large_sets memory <seconds> <folder> ...
python -m benchmarks.speed.large_sets cache <folder> [<seconds>]
python -m benchmarks.speed.large_sets kept <folder> [<rounds>]

The folders are those of `benchmarks.speed.photos`. `input` reads 224-pixel
crops, normalised, in turns with Keras's `image_dataset_from_directory`: crops
alone, and normalised ones. `start` measures
how long the first batch of an epoch takes, from its begin and after 90 % of it.
`memory` runs `training.distill` on each folder for so many seconds, and prints
the most memory that it held. `cache` fills a teacher cache with 20 views, in a
process that is killed twice after so many seconds, and then to its end. It
compares the vectors with the teacher's. It compares the time to read them from
the disk, none of them in memory before, with that of the teacher. `kept` reads
from as many images as 512 MB hold, in memory and from their files in turns:
shifted crops of 256 pixels (`crop`), and resized ones of 224 pixels in changed
colours (`standard`). It prints the memory that each of the two processes needs
for the images.
"""

import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from keras_mhgd.data import files

_SIDE, _CROP, _BATCH = 256, 224, 32


def _loaded(folder: str, side: int = _SIDE) -> keras_mhgd.data.Dataset:
    return keras_mhgd.data.load(folder, image_size=(side, side))


def rate(batches: tf.data.Dataset, steps: int) -> float:
    """Computes images a second, after the first two batches."""
    iterator = iter(batches)
    for _ in range(2):
        next(iterator)
    begin = time.perf_counter()
    for _ in range(steps):
        next(iterator)
    return steps * _BATCH / (time.perf_counter() - begin)


def compare_input(folder: str, rounds: str = "5") -> None:
    """Prints images a second of this library and of Keras, in turns."""
    crop = keras.layers.RandomCrop(_CROP, _CROP)
    dataset = _loaded(folder).augmented(crop)
    _ = dataset.mean  # reads a sample of the images
    steps = min(150, dataset.steps_per_epoch(_BATCH) - 3)
    whole = keras.utils.image_dataset_from_directory(
        os.path.join(folder, "train"),
        image_size=(_SIDE, _SIDE),
        batch_size=_BATCH,
        verbose=False,
    )
    normalise = keras.layers.Normalization(
        mean=dataset.mean, variance=dataset.std**2
    )
    streams = {"ours": dataset.train(_BATCH)}
    for name, layers in (
        ("Keras", crop),
        ("Keras, normalised", keras.Sequential([crop, normalise])),
    ):
        streams[name] = whole.map(
            lambda x, y, layers=layers: (layers(x, training=True), y),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
    rates = {name: [] for name in streams}
    for _ in range(int(rounds)):
        for name, stream in streams.items():
            rates[name].append(rate(stream, steps))
    for name, found in rates.items():
        print(name, *(f"{rate:.0f}" for rate in found), "images a second")
    for name in list(rates)[1:]:
        ratios = np.divide(rates["ours"], rates[name])
        low, middle, high = np.percentile(ratios, (0, 50, 100))
        print(f"ours / {name}: {middle:.2f} ({low:.2f} to {high:.2f})")


def start(folder: str) -> None:
    """Prints how long the first batch of a training takes."""
    for part in (0.0, 0.9):
        begin = time.perf_counter()
        dataset = _loaded(folder)
        step = int(part * dataset.steps_per_epoch(_BATCH))
        next(iter(dataset.train(_BATCH, initial_step=step)))
        seconds = time.perf_counter() - begin
        print(f"from {part:.0%} of the epoch on: {seconds:.1f} s")


def memory(seconds: str, *folders: str) -> None:
    """Prints the peak memory of trainings that begin."""
    with tempfile.TemporaryDirectory() as runs:
        teacher = keras_mhgd.models.get("vgg_small", (_CROP, _CROP, 3), 100)
        teacher.save(f"{runs}/teacher.keras")
        for number, folder in enumerate(folders):
            peak, output = _peak(
                [
                    *("--dataset", folder, f"--image_size={_CROP}"),
                    *("--teacher", f"{runs}/teacher.keras"),
                    *("--student=resnet_small", "--method=soft_logits"),
                    *("--batch_size=8", "--epochs=1", f"--run={runs}/{number}"),
                    *("--learning_rate=0.001", "--save_freq=20"),
                ],
                float(seconds),
            )
            steps = sorted(pathlib.Path(runs, str(number)).rglob("*_step_*"))
            done = steps[-1].stem if steps else output[-300:]
            print(f"{folder}: {peak / 2**20:.2f} GB, {done}")


def _peak(flags: list[str], seconds: float) -> tuple[int, str]:
    """Runs `training.distill` for a while; gives its peak memory in kB."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "training.distill", *flags],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        peak, end = 0, time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < end:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            if "VmHWM:" in status:
                peak = int(status.split("VmHWM:")[1].split()[0])
            time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        output.seek(0)
        return peak, output.read()


def _cache(folder: str, kept: str):
    """Fills a cache with 20 views, or goes on with it."""
    dataset = _loaded(folder, 64)
    keras.utils.set_random_seed(0)
    teacher = keras_mhgd.models.get("vgg_small", (64, 64, 3), 100)
    student = keras_mhgd.models.get("vgg_thin", (64, 64, 3), 100)
    distiller = keras_mhgd.Distiller(student, teacher, "mhgd")
    distiller.compile("sgd", **dataset.task())
    made = keras_mhgd.TeacherCache(
        distiller, dataset, 128, 20, directory=kept, verbose=True
    )
    return dataset, distiller, made


def cache(folder: str, seconds: str = "60") -> None:
    """Fills a cache that is killed twice, and compares it with the teacher."""
    with tempfile.TemporaryDirectory() as kept:
        command = [sys.executable, "-m", __spec__.name, "fill", folder, kept]
        for _ in range(2):
            process = subprocess.Popen(command)
            time.sleep(float(seconds))
            process.kill()
            process.wait()
            whole = len(list(pathlib.Path(kept).glob("*.npy")))
            print(f"Killed after {seconds} s; {whole} files are whole.")
        subprocess.run(command, check=True)
        _forget(kept)
        dataset, distiller, made = _cache(folder, kept)
        live = tf.function(distiller.targets)
        ratios, compared = [], 0
        for view in range(20):
            batches = dataset.train_with_places(
                128, initial_epoch=view, initial_step=7 * view
            ).take(3)
            for (images, _), _, places in batches:
                live(images)  # the first call of all traces
                begin = time.perf_counter()
                computed = live(images)
                middle = time.perf_counter()
                rows = made.rows(view, places.numpy())
                end = time.perf_counter()
                ratios.append((middle - begin) / (end - middle))
                for (_, point), one in zip(
                    distiller.sensing_points, computed.vectors, strict=True
                ):
                    compared += one.shape[0]
                    if not np.array_equal(one, rows[f"vectors@{point}"]):
                        raise AssertionError(f"{point} of view {view} differs")
        print(f"{compared} vectors are those of the teacher, bit for bit")
        print(
            f"reading is {np.median(ratios):.0f} times as fast "
            f"({min(ratios):.0f} to {max(ratios):.0f})"
        )


def _forget(folder: str) -> None:
    """Takes files out of memory, so that they are read from the disk."""
    os.sync()
    for path in pathlib.Path(folder).iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare_kept(folder: str, rounds: str = "5") -> None:
    """Prints images a second of a set in memory and of its files, in turns."""
    context = multiprocessing.get_context("spawn")
    readers = {}
    for way in ("kept", "read when needed"):
        ours, theirs = context.Pipe()
        arguments = folder, way == "kept", theirs
        process = context.Process(target=_measured, args=arguments, daemon=True)
        process.start()
        readers[way] = ours
        count, grown = ours.recv()
        print(f"{way}: {count} images, {grown / 2**10:.0f} MB more memory")
    for augmentation in ("crop", "standard"):
        rates = {way: [] for way in readers}
        for _ in range(int(rounds)):
            for way, connection in readers.items():
                connection.send(augmentation)
                rates[way].append(connection.recv())
        for way, found in rates.items():
            each = " ".join(f"{rate:.0f}" for rate in found)
            print(f"{augmentation}, {way}: {each} images a second")
        ratios = np.divide(*rates.values())
        low, middle, high = np.percentile(ratios, (0, 50, 100))
        print(f"kept / read: {middle:.2f} ({low:.2f} to {high:.2f})")
    for connection in readers.values():
        connection.send(None)


def _measured(
    folder: str, kept: bool, connection: multiprocessing.connection.Connection
) -> None:
    """Sends a set's size and memory, and a rate for each word received."""
    before = _resident()
    dataset = _loaded(folder)
    count = files._IN_MEMORY // math.prod(dataset.input_shape)
    dataset = dataset.take(min(count, len(dataset.x_train)))
    if kept:
        dataset = dataclasses.replace(dataset, x_train=dataset.x_train[:])
    steps = min(30, dataset.steps_per_epoch(_BATCH) - 3)
    rate(dataset.train(_BATCH), steps)
    connection.send((len(dataset.x_train), _resident() - before))
    sizes = {"crop": None, "standard": (_CROP, _CROP)}
    for augmentation in iter(connection.recv, None):
        shown = dataset.augmented(augmentation, sizes[augmentation])
        connection.send(rate(shown.train(_BATCH), steps))


def _resident() -> int:
    """Gives the memory of this process in kB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


if __name__ == "__main__":
    {
        "input": compare_input,
        "start": start,
        "memory": memory,
        "cache": cache,
        "kept": compare_kept,
        "fill": _cache,
    }[sys.argv[1]](*sys.argv[2:])
