"""Damaged files: each loader raises what it documents, and nothing else.

Two thousand a loader, in a process of their own: a crash of that process, a
minute without an answer and a file that is left anywhere are failures too.
"""

import collections
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd.callbacks import Checkpoint
from keras_mhgd.data import folders, idx, images, npz
from keras_mhgd.reuse import teacher_cache
from tests import damage
from training.runs.comparison import Comparison, Way
from training.runs.run import Run
from training.saved.results import read_metrics, read_result
from training.saved.trained import load_network

COUNT = 2000
MEMORY = 8 * 2**30  # that a process may ask for beside what it has, bytes
SECONDS = 60  # for one file


class Loader(NamedTuple):
    """What is read, and how.

    Attributes:
        files: Whole files by name; one of them is damaged at a time.
        load: Reads them from the folder where they are.
        damages: By the end of a name, how to damage content.
        raises: The exceptions that the loader documents.
    """

    files: Mapping[str, bytes]
    load: Callable[[pathlib.Path], Any]
    damages: Mapping[str, Callable[[np.random.Generator, bytes], bytes]]
    raises: tuple[type[Exception], ...] = (OSError, ValueError)


# What the loaders read.


def pixels(*shape):
    return (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)


def saved(write, *one, **arrays):
    file = io.BytesIO()
    write(file, *one, **arrays)
    return file.getvalue()


def arrays():
    return {
        "x_train": pixels(4, 3, 3),
        "y_train": np.arange(4) % 2,
        "x_test": pixels(2, 3, 3),
        "y_test": np.arange(2),
        "classes": np.array(["a", "b"]),
    }


def idx_bytes():
    return bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, *range(24)])


def image(encode, channels=3):
    return encode(pixels(8, 8, channels)).numpy()


def network():
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


def network_bytes(network):
    path = pathlib.Path("network.keras")
    network.save(path)
    content = path.read_bytes()
    path.unlink()
    return content


# The loaders, by name. Made in the process that reads, as networks are.


def npz_files():
    return Loader(
        {
            "stored.npz": saved(np.savez, **arrays()),
            "deflated.npz": saved(np.savez_compressed, **arrays()),
        },
        lambda folder: [npz.read(path) for path in folder.iterdir()],
        {"": damage.damage_zip},
    )


def idx_files():
    return Loader(
        {"images": idx_bytes()},
        lambda folder: idx.read(folder / "images", 3),
        {"": damage.damage_bytes},
    )


def idx_gz_files():
    return Loader(
        {"images.gz": gzip.compress(idx_bytes())},
        lambda folder: idx.read(folder / "images.gz", 3),
        {"": damage.damage_gzip},
    )


def png_files():
    return Loader(
        {"a.png": image(tf.io.encode_png), "b.png": image(tf.io.encode_png, 1)},
        lambda folder: [images.read_file(each) for each in folder.iterdir()],
        {"": damage.damage_png},
    )


def jpeg_files():
    def progressive(x):
        return tf.io.encode_jpeg(x, progressive=True)

    return Loader(
        {"a.jpg": image(tf.io.encode_jpeg), "b.jpg": image(progressive)},
        lambda folder: [images.read_file(each) for each in folder.iterdir()],
        {"": damage.damage_bytes},
    )


def image_folders():
    png, jpeg = image(tf.io.encode_png), image(tf.io.encode_jpeg)
    return Loader(
        {
            "train/cat/a.png": png,
            "train/dog/b.jpg": jpeg,
            "val/cat/c.jpeg": jpeg,
        },
        folders.read_image_folder,
        {".png": damage.damage_png, "": damage.damage_bytes},
    )


def tiny_imagenet():
    jpeg = image(tf.io.encode_jpeg)
    return Loader(
        {
            "wnids.txt": b"n01\nn02\n",
            "words.txt": b"n01\tcat\nn02\tdog, hound\n",
            "train/n01/images/n01_0.JPEG": jpeg,
            "train/n02/images/n02_0.JPEG": jpeg,
            "val/val_annotations.txt": b"v0.JPEG\tn01\t0\t0\t9\t9\n",
            "val/images/v0.JPEG": jpeg,
        },
        folders.read_tiny_imagenet,
        {".txt": damage.damage_text, "": damage.damage_bytes},
    )


def checkpoints():
    """With sums that are right, as somebody hostile would write them."""
    variables = [
        keras.Variable(np.zeros(shape, "float32"), dtype=dtype)
        for shape, dtype in (
            ((), "int32"),
            ((2, 3), "bfloat16"),
            (3, "float32"),
        )
    ]
    Checkpoint("checkpoints", variables).save(1)
    whole = pathlib.Path("checkpoints/epoch_00001.npz").read_bytes()
    shutil.rmtree("checkpoints")
    size = hashlib.sha256().digest_size

    def damaged(rng, content):
        if rng.random() < 0.1:
            return damage.damage_bytes(rng, content)
        content = damage.damage_zip(rng, content[:-size])
        return content + hashlib.sha256(content).digest()

    return Loader(
        {"epoch_00001.npz": whole},
        lambda folder: Checkpoint(folder, variables).restore(),
        {"": damaged},
    )


def caches():
    """The folder's files: that they fit the features is told of each."""
    manifest = {"format": 1, "teacher": "0123456789abcdef", "views": 2}
    features = np.arange(24, dtype="float16").reshape(2, 4, 3)

    def load(folder):
        teacher_cache._require_own(folder / "manifest.json", manifest)
        teacher_cache._mapped(
            folder / "logits.npy", features.shape, "float16"
        ).sum()

    return Loader(
        {
            "manifest.json": damage.json_bytes(manifest),
            "logits.npy": saved(np.save, features),
        },
        load,
        {".npy": damage.damage_npy, ".json": damage.damage_text},
    )


def networks():
    return Loader(
        {"a.keras": network_bytes(network())},
        lambda folder: load_network(folder / "a.keras"),
        {"": damage.damage_zip},
    )


def exported():
    return Loader(
        {"a.keras": network_bytes(network())},
        lambda folder: keras_mhgd.export.load(folder / "a.keras"),
        {"": damage.damage_zip},
    )


def run_results():
    result = {
        "accuracy": 0.5,
        "best_accuracy": 0.75,
        "epochs": 2,
        "seed": 0,
        "seconds": 1.5,
        "configuration": {"dataset": "glyphs"},
    }
    return Loader(
        {"result.json": damage.json_bytes(result)},
        read_result,
        {"": damage.damage_text},
    )


def run_metrics():
    text = "epoch,loss,val_accuracy,seconds\n1,2.5,,1.25\n2,1.5,0.5,1.25\n"
    return Loader(
        {"metrics.csv": text.encode()},
        lambda folder: read_metrics(folder / "metrics.csv"),
        {"": damage.damage_text},
    )


def run_configurations():
    config = {"dataset": "glyphs", "epochs": 2, "data_dir": None, "set": ["a"]}
    return Loader(
        {"config.json": damage.json_bytes(config)},
        lambda folder: Run(folder, config),
        {"": damage.damage_text},
    )


def comparisons():
    way = Way("rkd", "distill", {"method": "rkd"})
    rkd = {"program": "distill", "method": "rkd"}
    config = {"shared": {"epochs": 2}, "ways": {"rkd": rkd}}
    return Loader(
        {"config.json": damage.json_bytes(config)},
        lambda folder: Comparison(folder, [way], {"epochs": 2}),
        {"": damage.damage_text},
    )


LOADERS = (
    npz_files,
    idx_files,
    idx_gz_files,
    png_files,
    jpeg_files,
    image_folders,
    tiny_imagenet,
    checkpoints,
    caches,
    networks,
    exported,
    run_results,
    run_metrics,
    run_configurations,
    comparisons,
)


@pytest.mark.slow
@pytest.mark.parametrize("loader", LOADERS, ids=lambda each: each.__name__)
def test_damaged_files(tmp_path, loader):
    for name in ("place", "elsewhere", "temporary"):
        (tmp_path / name).mkdir()
    process = multiprocessing.get_context("forkserver").Process(
        target=endure, args=(loader, tmp_path)
    )
    process.start()
    process.join()
    report = (tmp_path / "report").read_text()
    assert process.exitcode == 0, report
    outcomes = json.loads(report.splitlines()[-1])
    print(outcomes)
    assert sum(outcomes.values()) == COUNT
    # Some damage is harmless, and most is not.
    assert outcomes["read"] > 0
    assert outcomes["read"] < 0.9 * COUNT


def endure(loader, folder):
    """Reads damaged files; the report's last line tells where it ended."""
    os.chdir(folder / "elsewhere")
    os.environ["TMPDIR"] = str(folder / "temporary")
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    warnings.simplefilter("ignore")
    whole = loader()
    limit_memory(MEMORY)
    outcomes = collections.Counter(read=0)
    with (folder / "report").open("w") as report:
        for number in range(COUNT):
            print("Input", number, file=report, flush=True)
            files = damaged(whole, number)
            write(folder / "place", files)
            signal.alarm(SECONDS)
            try:
                whole.load(folder / "place")
                outcomes["read"] += 1
            except whole.raises as error:
                outcomes[type(error).__name__] += 1
            except BaseException:
                traceback.print_exc(file=report)
                raise
            signal.alarm(0)
            found = sorted(
                str(path.relative_to(folder))
                for path in folder.rglob("*")
                if path.is_file()
            )
            expected = sorted(["report", *(f"place/{name}" for name in files)])
            if found != expected:
                print("Files:", found, file=report)
                raise SystemExit(1)
        print(json.dumps(outcomes), file=report)


def damaged(loader, number):
    """One of the files, or a few, damaged as the number says."""
    rng = np.random.default_rng(number)
    names = sorted(loader.files)
    files = dict(loader.files)
    for name in rng.permutation(names)[: 1 + (rng.random() < 0.1)]:
        how = next(
            change
            for end, change in loader.damages.items()
            if name.endswith(end)
        )
        files[str(name)] = how(rng, files[name])
    return files


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def limit_memory(more):
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
