"""Files that were made to harm: refused before they can."""

import gzip
import hashlib
import io
import json
import os
import pathlib
import struct
import zipfile
import zlib

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import methods
from keras_mhgd.callbacks import Checkpoint
from keras_mhgd.data import folders, idx, images
from keras_mhgd.features import Features
from keras_mhgd.reuse.preparations import Preparations
from keras_mhgd.storage import arrays
from keras_mhgd.storage.arrays import map_array, read_arrays
from keras_mhgd.storage.networks import read_network

# Arrays.


def npy_that_promises(count):
    header = {"descr": "|u1", "fortran_order": False, "shape": (count,)}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(10)


def npz(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    file.seek(0)
    return file


@pytest.mark.parametrize("count", [11, 10**15, 10**30])
def test_an_array_that_promises_too_much(tmp_path, count):
    content = npy_that_promises(count)
    with pytest.raises(ValueError, match=f"x.npy promises {count} bytes"):
        read_arrays(npz({"x.npy": content}))
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match="mmap length|ValueError|OverflowErr"):
        map_array(tmp_path / "x.npy")


def test_an_array_that_unfolds(monkeypatch):
    """Here to more than a thousand bytes and a hundred times the file."""
    monkeypatch.setattr(arrays, "_MOST_BYTES", 1000)
    file = io.BytesIO()
    np.savez_compressed(file, x=np.zeros(10**6, np.uint8))
    with pytest.raises(ValueError, match=r"\d+ bytes unfold to 1000128"):
        read_arrays(file)
    file = io.BytesIO()
    np.savez_compressed(file, x=np.arange(10**4))  # large, but no bomb
    np.testing.assert_array_equal(read_arrays(file)["x"], np.arange(10**4))


def test_archives_of_other_kinds():
    content = npy_that_promises(10)
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(ValueError, match="foreign compression"):
            read_arrays(npz({"x.npy": content}, compression))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        file = io.BytesIO()
        np.savez(file, x=np.array([{}], dtype=object))
        read_arrays(file)
    assert list(read_arrays(npz({"../x.npy": content}))) == ["../x"]


@pytest.mark.parametrize("sides", [(2**31 - 2, 1, 1), (2**32 - 1,) * 3])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_that_promises_too_much(tmp_path, sides, suffix):
    path = tmp_path / f"images{suffix}"
    content = bytes([0, 0, 8, 3]) + np.array(sides, ">u4").tobytes() + bytes(9)
    if suffix:
        content = gzip.compress(content)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"Received: sizes .* for \d values"):
        idx.read(path, 3)


def test_checkpoints_of_other_numbers(tmp_path):
    """Whole ones, with a checksum, of text and of whole numbers."""
    for value in (np.array(["a", "b"]), np.arange(2)):
        variables = [keras.Variable(np.zeros(2, "float32"))]
        checkpoint = Checkpoint(tmp_path, variables)
        np.savez(
            tmp_path / "made.npz",
            version=2,
            position=(1, 0),
            variable_00000=value,
        )
        content = (tmp_path / "made.npz").read_bytes()
        digest = hashlib.sha256(content).digest()
        (tmp_path / "epoch_00001.npz").write_bytes(content + digest)
        with pytest.raises(ValueError, match="must hold the 1 variables"):
            checkpoint.restore()


# Images.


def png_chunk(kind, body):
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def test_a_size_that_is_told_twice(tmp_path):
    """A chunk before the header tells a small size, the header a large one."""
    header = struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"aaAa", struct.pack(">II", 8, 8))
        + png_chunk(b"IHDR", header)
    )
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        images.read_file(path)


def test_a_jpeg_of_too_many_scans(tmp_path):
    image = np.zeros((16, 16, 1), np.uint8)
    content = tf.io.encode_jpeg(image, progressive=True).numpy()
    scan = content[content.rindex(b"\xff\xda") : -2]
    path = tmp_path / "a.jpg"
    path.write_bytes(content[:-2] + 3 * scan + content[-2:])
    assert images.read_file(path).shape == (16, 16, 3)
    path.write_bytes(content[:-2] + 100 * scan + content[-2:])
    with pytest.raises(ValueError, match="more than 100 scans"):
        images.read_file(path)


def test_images_without_an_end(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(ValueError, match=f"must be a file.*{name}"):
            images.read_file(tmp_path / name)


def test_names_that_lead_out_of_the_folder(tmp_path):
    image = tf.io.encode_png(np.zeros((8, 8, 3), np.uint8)).numpy()
    for name in ("train/n01/images", "val/images"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(image)
    (tmp_path / "words.txt").write_text("n01\tcat\n")
    (tmp_path / "wnids.txt").write_text("n01\n")
    annotations = tmp_path / "val" / "val_annotations.txt"
    for name in ("../../train/n01/images/a.png", "/etc/passwd", "..", "a/b"):
        annotations.write_text(f"{name}\tn01\n")
        with pytest.raises(ValueError, match="must name files beside it"):
            folders.read_tiny_imagenet(tmp_path)
    annotations.write_text("a.png\tn01\n")
    assert folders.read_tiny_imagenet(tmp_path).classes == ("cat",)
    (tmp_path / "wnids.txt").write_text("n01\n../../x\n")
    with pytest.raises(ValueError, match=r"must name folders .*'../../x'"):
        folders.read_tiny_imagenet(tmp_path)


# Networks.


@pytest.fixture
def network(tmp_path):
    """Makes a `.keras` file with other content than its own."""
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
    model.save(tmp_path / "whole.keras")
    with zipfile.ZipFile(tmp_path / "whole.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def make(**changes):
        path = tmp_path / "changed.keras"
        path.write_bytes(npz(members | changes).getvalue())
        return path

    return make


@pytest.mark.parametrize(
    ("module", "name", "config"),
    [
        ("subprocess", "Popen", {"args": ["touch", "touched"]}),
        ("keras.layers", "TFSMLayer", {"filepath": "saved_model"}),
        ("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}),
        ("keras.layers", "Dense", {"units": 3}),
        ("keras.layers", "Dense", {"units": -3}),
    ],
)
def test_networks_that_ask_for_more(
    tmp_path, monkeypatch, network, module, name, config
):
    monkeypatch.chdir(tmp_path)
    text = {"module": module, "class_name": name, "config": config}
    path = network(**{"config.json": json.dumps(text)})
    with pytest.raises(ValueError, match="must be a Keras model"):
        read_network(path)
    assert not pathlib.Path("touched").exists()


def test_code_in_a_network(tmp_path):
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Lambda(lambda x: x)]
    )
    model.save(tmp_path / "lambda.keras")
    with pytest.raises(
        ValueError,
        match="(?s)Received.*can't be loaded.*[Ll]ambda.*Save the model anew",
    ):
        read_network(tmp_path / "lambda.keras")


def test_networks_write_nothing(tmp_path, monkeypatch, network):
    """Files of a network's assets are unpacked, to be read."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    names = ("../out", "/proc/self/cwd/out", "assets/../../out", "assets/a")
    path = network(**dict.fromkeys(names, b"out"))
    with pytest.warns(UserWarning, match="Skipping invalid path") as told:
        read_network(path)
    assert len(told) == 3
    assert sorted(each.name for each in tmp_path.rglob("*")) == sorted(
        ["here", "temporary", "whole.keras", "changed.keras"]
    )


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_that_promise_too_much(network):
    file = io.BytesIO()
    with h5py.File(file, "w") as weights:
        group = weights.create_group("layers/dense/vars")
        group["1"] = np.zeros(3, "float32")
        group.create_dataset("0", (2, 10**14), "float32", chunks=(2, 1000))
    path = network(**{"model.weights.h5": file.getvalue()})
    with pytest.raises(ValueError, match="refusing to load|bomb"):
        read_network(path)


def test_only_one_format_is_read(tmp_path, network):
    for name in ("a.h5", "a.zip"):
        path = network().rename(tmp_path / name)
        with pytest.raises(ValueError, match="must end in .keras"):
            read_network(path)
    (tmp_path / "folder.keras").mkdir()
    with pytest.raises(IsADirectoryError):
        read_network(tmp_path / "folder.keras")


def test_preparations_of_another_kind(tmp_path, network):
    """And none but those that the method knows."""
    shapes = Features((None, 3), [(None, 2, 2, 2)], (None, 3))
    method = methods.FactorTransfer(preparation_epochs=1)
    method.build(shapes, shapes)
    preparations = Preparations(tmp_path / "made", {})
    preparations.keep([method])  # which has learnt nothing
    assert not list((tmp_path / "made").rglob("*.keras"))
    prepared = methods.FactorTransfer(preparation_epochs=1)
    prepared.build(shapes, shapes)
    prepared.preparation.adopt(method.preparation.networks)
    preparations.keep([prepared])
    (path,) = (tmp_path / "made").rglob("*.keras")
    path.rename(path.with_name("weight.keras"))
    preparations.restore([method])
    assert not method.preparation.done
    network().rename(path)
    preparations.restore([prepared])  # needs nothing
    with pytest.raises(ValueError, match="set_weights"):
        preparations.restore([method])
