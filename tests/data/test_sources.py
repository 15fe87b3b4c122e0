import gzip
import io
import itertools
import os
import re
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mhgd import data
from keras_mhgd.data import files, idx, npz, records, tfds

RNG = np.random.default_rng(0)


def pixels(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


# The embedded set.


def test_glyphs():
    glyphs = data.load("glyphs")
    assert glyphs.name == "glyphs"
    assert glyphs.x_train.shape == (20000, 28, 28, 1)
    assert glyphs.x_test.shape == (5000, 28, 28, 1)
    assert glyphs.classes[32] == "A"
    assert glyphs.num_classes == 100
    np.testing.assert_array_equal(np.bincount(glyphs.y_train), 200)
    np.testing.assert_allclose(glyphs.mean, glyphs.x_train.mean(), rtol=1e-6)
    np.testing.assert_allclose(glyphs.std, glyphs.x_train.std(), rtol=1e-6)


def test_subset_is_balanced_and_normalised_as_the_full_set():
    subset = data.load("glyphs", subset=250)
    counts = np.bincount(subset.y_train)
    np.testing.assert_array_equal(counts, [3] * 50 + [2] * 50)
    np.testing.assert_array_equal(subset.mean, data.load("glyphs").mean)


def test_image_size_resizes_arrays():
    small = data.load("glyphs", subset=100, image_size=[14, 12])
    assert small.input_shape == (14, 12, 1)
    assert small.padding == 1
    full = data.load("glyphs")
    np.testing.assert_allclose(small.mean, full.mean, atol=1)


# IDX files.


def idx_bytes(array):
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim)
    return (
        header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def write_fashion(folder, suffix=""):
    arrays = (pixels(6, 28, 28), np.uint8(range(6)))
    for part in ("train", "t10k"):
        for what, array in zip(
            ("images-idx3", "labels-idx1"), arrays, strict=True
        ):
            content = idx_bytes(array)
            content = gzip.compress(content) if suffix else content
            (folder / f"{part}-{what}-ubyte{suffix}").write_bytes(content)
    return arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_from_idx_files(tmp_path, suffix):
    x, y = write_fashion(tmp_path, suffix)
    fashion = data.load("fashion_mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(fashion.x_train, x[..., None])
    np.testing.assert_array_equal(fashion.y_test, y)
    assert (fashion.flip, fashion.padding, fashion.num_classes) == (True, 2, 10)
    assert fashion.classes[9] == "Ankle boot"


def test_fashion_mnist_from_debian(tmp_path, monkeypatch):
    """Where no folder is given, that of Debian's package is read."""
    x, y = write_fashion(tmp_path, ".gz")
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", tmp_path)
    fashion = data.load("fashion_mnist", subset=5)
    assert fashion.full_size == 6
    np.testing.assert_array_equal(fashion.x_test, x[..., None])
    np.testing.assert_array_equal(fashion.y_test, y)


def test_fashion_mnist_names_a_missing_file(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"without t10k-labels-idx1-ubyte or .*\.gz\. C"
    ):
        data.load("fashion_mnist", data_dir=tmp_path)


def test_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fash"):
        data.load("fashion_mnist", data_dir=tmp_path)


GOOD = idx_bytes(np.zeros((3, 2, 2), np.uint8))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", r"its header \. Fetch"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "its header 00 00 0d 03"),
        (idx_bytes(np.zeros(9, np.uint8)), "its header 00 00 08 01"),
        (GOOD[:10], "its header"),
        (GOOD[:-1], r"sizes \(3, 2, 2\) for 11 values"),
        (GOOD + b"\x00", r"sizes \(3, 2, 2\) for more than 12 values"),
        (GOOD[:4] + b"\xff" * 12, "4294967295"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_refuses(tmp_path, content, found, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    message = r"file.* must be a whole IDX file of unsigned bytes in 3 .*"
    with pytest.raises(ValueError, match=message + found):
        idx.read(path, rank=3)


# .npz files.


def arrays(**changes):
    parts = {
        "x_train": pixels(8, 16, 16, 3),
        "y_train": np.arange(8) % 4,
        "x_test": pixels(4, 16, 16, 3),
        "y_test": np.arange(4),
    }
    parts = {**parts, **changes}
    return {key: value for key, value in parts.items() if value is not None}


def test_npz(tmp_path):
    parts = arrays(classes=np.array(["a", "b", "c", "d"]))
    np.savez(tmp_path / "set.npz", **parts)
    dataset = data.load(tmp_path / "set.npz")
    np.testing.assert_array_equal(dataset.x_train, parts["x_train"])
    np.testing.assert_array_equal(dataset.y_test, parts["y_test"])
    assert dataset.classes == ("a", "b", "c", "d")
    assert (dataset.flip, dataset.padding) == (False, 2)
    by_folder = data.load("set.npz", data_dir=tmp_path)
    np.testing.assert_array_equal(by_folder.x_test, parts["x_test"])


def test_npz_grey_images_and_column_labels(tmp_path):
    np.savez(
        tmp_path / "set.npz",
        x_train=pixels(8, 9, 10),
        y_train=np.arange(8, dtype=np.uint8)[:, None],
        x_test=pixels(2, 9, 10),
        y_test=np.zeros((2, 1), np.int64),
    )
    dataset = data.load(str(tmp_path / "set.npz"))
    assert dataset.input_shape == (9, 10, 1)
    assert dataset.y_train.shape == (8,)
    assert dataset.classes == tuple("01234567")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"y_test": None},
            "must hold x_train, y_train, x_test, y_test and may hold classes. "
            "Received: x_test, x_train, y_train. Write",
        ),
        (
            {"x_train": np.zeros((8, 16, 16), np.float32)},
            "`x_train` must be a non-empty uint8 .* float32 array",
        ),
        ({"x_test": pixels(4, 16)}, r"`x_test` .* shape \(4, 16\)"),
        ({"y_train": np.zeros(8)}, "`y_train` must be .* float64 array"),
        ({"y_train": np.zeros((8, 2), int)}, r"shape \(8, 2\)"),
        ({"y_train": np.zeros(0, int)}, "non-empty integer array"),
        ({"y_test": np.full(4, 2**32)}, "labels from 4294967296 to 42949"),
        ({"y_test": np.full(4, -1)}, "labels from -1 to -1"),
        ({"y_train": np.zeros(7, int)}, r"set\.npz: `y_train` must be .* 8"),
        (
            {"classes": np.array(["a", "b"])},
            r"set\.npz: labels must lie in \[0, 2\).* y_train\[2\] = 2",
        ),
        (
            {"y_test": np.array([object()] * 4)},
            "without pickled objects. Received: ValueError: Object arrays",
        ),
    ],
)
def test_npz_refuses(tmp_path, changes, message):
    np.savez(tmp_path / "set.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "set.npz")


def test_npz_that_is_none(tmp_path):
    path = tmp_path / "set.npz"
    with pytest.raises(FileNotFoundError, match=r"must be a file\. Received"):
        data.load(path)
    for content in (b"", b"no zip", b"PK\x03\x04 cut off"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a whole .npz file"):
            data.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="Received: .*not a zip file"):
        data.load(path)


def test_npz_whose_labels_are_damaged(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays(y_train=np.arange(8, dtype=np.uint8) + 100))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"defg", b"dddd"))
    with pytest.raises(
        ValueError, match=r"set\.npz must be a whole .*Bad CRC-32 .*y_train"
    ):
        data.load(path)


# Damaged files raise only what is documented.


def damaged(content):
    """Cut off, or with a few bytes changed."""
    positions = st.integers(0, len(content) - 1)
    changes = st.lists(
        st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=4
    )

    def change(pairs):
        changed = bytearray(content)
        for position, value in pairs:
            changed[position] = value
        return bytes(changed)

    return st.one_of(
        positions.map(lambda end: content[:end]), changes.map(change)
    )


def npz_bytes(save):
    file = io.BytesIO()
    small = {"x_train": pixels(8, 5, 5), "x_test": pixels(4, 5, 5)}
    save(file, **arrays(**small))
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    content=st.one_of(
        damaged(npz_bytes(np.savez)), damaged(npz_bytes(np.savez_compressed))
    )
)
def test_damaged_npz(folder, content):
    path = folder / "set.npz"
    path.write_bytes(content)
    try:
        npz.read(path)
    except ValueError as error:
        assert "set.npz" in str(error)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    content=st.one_of(
        damaged(GOOD), damaged(gzip.compress(GOOD)), st.binary(max_size=40)
    ),
    suffix=st.sampled_from(["", ".gz"]),
)
def test_damaged_idx(folder, content, suffix):
    path = folder / f"file{suffix}"
    path.write_bytes(content)
    try:
        assert idx.read(path, rank=3).ndim == 3
    except ValueError as error:
        assert "file" in str(error)


# Image folders.


def write_image(path, shape=(16, 16, 3), value=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels(*shape) if value is None else np.full(shape, value, np.uint8)
    png = path.suffix.lower() == ".png"
    encode = tf.io.encode_png if png else tf.io.encode_jpeg
    path.write_bytes(encode(image).numpy())


def write_folder(folder, test="test"):
    for part, count in (("train", 3), (test, 2)):
        for value, name in enumerate(("cat", "dog")):
            for i in range(count):
                suffix = (".png", ".JPG", ".jpeg")[i]
                path = folder / part / name / f"{i}{suffix}"
                write_image(path, value=100 * value)
    (folder / "train" / "cat" / "notes.txt").write_text("no image")


@pytest.mark.parametrize("test", ["test", "val", "validation"])
@pytest.mark.parametrize("by_path", [True, False])
def test_image_folder(tmp_path, test, by_path):
    write_folder(tmp_path, test)
    if by_path:
        dataset = data.load(tmp_path)
    else:
        dataset = data.load("image_folder", data_dir=tmp_path)
    assert dataset.x_train.shape == (6, 16, 16, 3)
    assert dataset.classes == ("cat", "dog")
    assert (dataset.flip, dataset.padding) == (True, 2)
    np.testing.assert_array_equal(dataset.y_train, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(dataset.y_test, [0, 0, 1, 1])
    np.testing.assert_array_equal(
        dataset.x_train[:, 0, 0, 0] > 50, dataset.y_train
    )


def test_grey_images_become_rgb(tmp_path):
    write_folder(tmp_path)
    write_image(tmp_path / "train" / "cat" / "0.png", (16, 16, 1), value=9)
    assert (data.load(tmp_path).x_train[0] == 9).all()


def test_images_of_several_sizes(tmp_path):
    write_folder(tmp_path)
    write_image(tmp_path / "train" / "dog" / "1.JPG", (40, 32, 3), value=100)
    with pytest.raises(
        ValueError,
        match=r"must be of one size\. Received: .*1\.JPG of shape \(40, 32, 3\)"
        r", others of shape \(16, 16, 3\). Pass image_size=",
    ):
        data.load(tmp_path)
    dataset = data.load(tmp_path, image_size=(32, 24))
    assert dataset.input_shape == (32, 24, 3)
    assert abs(int(dataset.x_train[4].mean()) - 100) < 3


def big_png():
    """The header of a small file that would unfold to 100 GB."""

    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", 10**5, 3 * 10**5, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b[: len(b) // 2], r"must be a whole PNG or JPEG[^{\[]*$"),
        (lambda b: b"", r"1\.JPG of 0 bytes: neither PNG nor JPEG"),
        (lambda b: b"GIF89a" + b, "neither PNG nor JPEG"),
        (lambda b: b[:2] + b"\x00" * 30, "must be a whole PNG or JPEG"),
        (lambda b: big_png(), "more than 67108864 pixels. Received: .*1.JPG"),
        (lambda b: b + bytes(20 * 2**20), "larger than 20971520 bytes"),
    ],
)
def test_damaged_image(tmp_path, spoil, message):
    write_folder(tmp_path)
    path = tmp_path / "train" / "dog" / "1.JPG"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        data.load(tmp_path)
    assert str(path) in str(error.value)


def test_image_folder_without_test_images(tmp_path):
    write_folder(tmp_path, "held_out")
    with pytest.raises(
        FileNotFoundError, match=r"test or val .* with \['held_out', 'train'\]"
    ):
        data.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="which is no folder"):
        data.load("image_folder", data_dir=tmp_path / "none")


def test_image_folder_with_odd_classes(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "train" / "eel").mkdir()
    with pytest.raises(ValueError, match="must have images .* none in .*eel"):
        data.load(tmp_path)
    (tmp_path / "train" / "eel").rmdir()
    write_image(tmp_path / "test" / "emu" / "0.png")
    with pytest.raises(ValueError, match=r"must be among .* \['emu'\]"):
        data.load(tmp_path)


def write_tiny_imagenet(folder):
    rows = []
    for value, wnid in enumerate(("n02", "n01")):
        for i in range(2):
            name = f"{wnid}_{i}.JPEG"
            path = folder / "train" / wnid / "images" / name
            write_image(path, (64, 64, 3), value=100 * value)
        name = f"val_{value}.JPEG"
        write_image(folder / "val" / "images" / name, (64, 64, 3))
        rows.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(rows))
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n00\tthing\nn02\tgoldfish, carp\n")


@pytest.mark.parametrize("inside", ["", "tiny-imagenet-200"])
def test_tiny_imagenet(tmp_path, inside):
    write_tiny_imagenet(tmp_path / inside)
    tiny = data.load("tiny_imagenet", data_dir=tmp_path)
    assert tiny.classes == ("goldfish, carp", "n01")
    np.testing.assert_array_equal(tiny.y_train, [0, 0, 1, 1])
    np.testing.assert_array_equal(tiny.y_test, [0, 1])
    assert tiny.input_shape == (64, 64, 3)
    assert (tiny.flip, tiny.padding) == (True, 4)
    assert tiny.x_train[2:].mean() > 90 > tiny.x_train[:2].mean()


def test_tiny_imagenet_refuses(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="must be read from a folder.*data_dir=None"
    ):
        data.load("tiny_imagenet")
    with pytest.raises(FileNotFoundError, match="without wnids.txt. Unpack"):
        data.load("tiny_imagenet", data_dir=tmp_path)
    write_tiny_imagenet(tmp_path)
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn09\n")
    with pytest.raises(ValueError, match="'n09' for 'val_0.JPEG'"):
        data.load("tiny_imagenet", data_dir=tmp_path)
    annotations.write_text("val_0.JPEG\n")
    with pytest.raises(ValueError, match="must have 2 or more columns"):
        data.load("tiny_imagenet", data_dir=tmp_path)


# Names, and TensorFlow Datasets.


def test_names():
    assert data.names() == (
        "cifar10",
        "cifar100",
        "fashion_mnist",
        "glyphs",
        "image_folder",
        "languages",
        "tiny_imagenet",
    )


@pytest.mark.parametrize("name", ["glyps!", "", "no/such/folder/", "Glyphs"])
def test_impossible_name(name):
    with pytest.raises(ValueError, match=re.escape(f"Received: {name!r}. ")):
        data.load(name)


def test_close_matches_are_suggested():
    with pytest.raises(ValueError, match="Did you mean 'glyphs'. Built-in na"):
        data.load("Glyphs")


@pytest.mark.parametrize("size", [32, (32,), (0, 3), "ab"])
def test_impossible_image_size(size):
    with pytest.raises((TypeError, ValueError), match="`image_size` must be"):
        data.load("glyphs", image_size=size)


def test_name_of_another_kind():
    with pytest.raises(TypeError, match="must be a string or a path. Received"):
        data.load(3)


@pytest.mark.slow
def test_missing_set_fails_without_slow_imports(tmp_path):
    program = f"""
import sys
from keras_mhgd import data
slow = {{"tensorflow_datasets", "pyarrow"}}
assert not slow & set(sys.modules)
try:
    data.load("cifar100", data_dir={str(tmp_path)!r})
except FileNotFoundError as error:
    print(error)
assert not slow & set(sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for part in (
        f"'cifar100' must be prepared before it is read. Received: no such "
        f"set in {tmp_path}. Pass download=True / --download ",
        "Built-in names: cifar10, cifar100, fashion_mnist, glyphs, ",
    ):
        assert part in result.stdout


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        data.load("cifr100")
    with pytest.raises(FileNotFoundError, match="Did you mean 'cifar100' or"):
        data.load("cifr100")


def test_a_folder_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = re.escape(f"There is no folder {tmp_path / 'photos'} either. ")
    with pytest.raises(FileNotFoundError, match=folder):
        data.load("photos", data_dir=tmp_path)


def test_download_without_network_fails_soon(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError("offline")

    monkeypatch.setattr(tfds.socket, "create_connection", refuse)
    with pytest.raises(
        ConnectionError, match=r"'cifar10' must reach the network\. .* within 3"
    ):
        data.load("cifar10", data_dir=tmp_path, download=True)


@pytest.mark.parametrize(
    ("name", "version", "shape", "flip", "padding"),
    [
        ("stl10", "1.0.0", (96, 96, 3), True, 4),
        ("mnist", "3.0.1", (28, 28, 1), False, 2),
        ("fashion_mnist", "3.0.1", (28, 28, 1), True, 2),
        ("svhn_toy", "1.0.0", (32, 32, 3), False, 4),
        ("toy", "1.0.0", (16, 24, 3), True, 2),
    ],
)
def test_tensorflow_datasets(
    tmp_path, prepare, name, version, shape, flip, padding
):
    images = prepare(tmp_path, name, version, shape)
    dataset = data.load(name, data_dir=tmp_path, subset=5)
    np.testing.assert_array_equal(dataset.x_train, images[:5])
    np.testing.assert_array_equal(dataset.x_test, images)
    np.testing.assert_array_equal(dataset.y_test, np.arange(6))
    assert (dataset.flip, dataset.padding) == (flip, padding)
    assert dataset.num_classes == 10
    versioned = data.load(f"{name}:{version}", data_dir=tmp_path)
    np.testing.assert_array_equal(versioned.x_train, images)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
@pytest.mark.parametrize("shape", [(16, 12, 1), (None, None, 3)])
def test_records_are_read_when_they_are_needed(
    tmp_path, prepare, monkeypatch, file_format, shape
):
    """They give the batches of images in memory: all, held out, and a part."""
    prepare(tmp_path, "toy", "1.0.0", shape, file_format=file_format)
    size = None if shape[0] else (8, 10)
    kept = data.load("toy", data_dir=tmp_path, image_size=size)
    assert isinstance(kept.x_train, np.ndarray)
    monkeypatch.setattr(files, "_IN_MEMORY", 100)
    lazy = data.load("toy", data_dir=tmp_path, image_size=size)
    assert isinstance(lazy.x_train, records.Records)
    assert lazy.x_train.fingerprint() != lazy.x_test.part([0]).fingerprint()
    np.testing.assert_array_equal(lazy.x_train[::2], kept.x_train[::2])
    np.testing.assert_array_equal(lazy.y_train, np.arange(6))
    for change in (
        lambda each: each,
        lambda each: each.hold_out(0.5).take(2),
        lambda each: each.augmented("standard", size=(6, 6)),
    ):
        found, expected = (
            list(change(each).train(4).take(4).as_numpy_iterator())
            for each in (lazy, kept)
        )
        for (x, y), (images, labels) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(y, labels)
            if change(kept).layers and shape[0] is None:
                assert x.shape == images.shape  # cropped in their own size
            else:
                np.testing.assert_array_equal(x, images)


def write_records(path, contents):
    if ".array_record" in str(path):
        module = pytest.importorskip("array_record.python.array_record_module")
        writer = module.ArrayRecordWriter(str(path), "group_size:1")
    else:
        writer = tf.io.TFRecordWriter(str(path))
    for each in contents:
        writer.write(each)
    writer.close()


@pytest.mark.parametrize("kind", [records.TFRecords, records.ArrayRecords])
def test_more_record_files_than_may_be_open(tmp_path, kind):
    suffix = "array_record" if kind is records.ArrayRecords else "tfrecord"
    paths = [str(tmp_path / f"{number:03}.{suffix}") for number in range(300)]
    for number, path in enumerate(paths):
        write_records(path, [b"%d" % (2 * number + each) for each in range(2)])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = len(os.listdir("/proc/self/fd")) + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
    try:
        readers = [kind(paths), kind(paths[:2])]
        found = [readers[0][index] for index in range(600)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [len(each) for each in readers] == [600, 4]
    assert found == [b"%d" % index for index in range(600)]
    assert readers[1][3] == b"3"
    assert [readers[0].path(index) for index in (1, 2)] == paths[:2]


def test_a_split_gives_images_without_labels(tmp_path, prepare, monkeypatch):
    splits = ("train", "test", "unlabelled")
    images = prepare(tmp_path, "toy", "1.0.0", (8, 8, 3), splits)
    dataset = data.load("toy", data_dir=tmp_path)

    def more(split):
        return data.load_unlabeled(split, "toy", (8, 8), tmp_path)

    both = dataset.with_unlabeled(more("unlabelled"))
    np.testing.assert_array_equal(both.x_train[6:], images)
    assert both.unlabeled == 6
    with pytest.raises(
        ValueError, match="'more'. Its splits are train, test, "
    ):
        more("more")
    with pytest.raises(FileNotFoundError, match="Images without labels must"):
        data.load_unlabeled("more", "glyphs", (28, 28))
    monkeypatch.setattr(files, "_IN_MEMORY", 100)
    # Equal in number and place, but of other files.
    prints = {more(split).fingerprint() for split in ("train", "unlabelled")}
    assert len(prints) == 2
    (path,) = (tmp_path / "toy" / "1.0.0").glob("toy-unlabelled*")
    path.unlink()
    data.load("toy", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="'toy' must be prepared"):
        more("unlabelled")


@pytest.mark.parametrize("cut", [3, 14, 200])
def test_a_cut_record_file_is_refused(tmp_path, prepare, cut):
    prepare(tmp_path, "toy", "1.0.0", (8, 8, 3))
    (path,) = (tmp_path / "toy" / "1.0.0").glob("toy-train*")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(
        ValueError, match="toy-train.* must be a whole TFRecord"
    ):
        data.load("toy", data_dir=tmp_path)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_record_file_that_lacks_records_is_refused(
    tmp_path, prepare, file_format
):
    """Also one that is cut where it tells nothing of what is missing."""
    prepare(tmp_path, "toy", "1.0.0", (8, 8, 3), file_format=file_format)
    (path,) = (tmp_path / "toy" / "1.0.0").glob("toy-train*")
    first = path.with_suffix(".first")
    write_records(first, [b"one record"])
    contents = {0: b"", 1: first.read_bytes()}
    if file_format == "array_record":
        contents = {0: path.read_bytes()[:-3]}
    for count, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(
            ValueError,
            match=rf"{path.name} must have the 6 records .* Received: {count} "
            rf"records in {len(content)} bytes\. Prepare",
        ):
            data.load("toy", data_dir=tmp_path)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_damage_is_named_where_only_labels_are_read(
    tmp_path, prepare, monkeypatch, file_format
):
    """A label that has become another one, which only a checksum tells."""
    monkeypatch.setattr(files, "_IN_MEMORY", 100)
    monkeypatch.setattr(files, "_CHECKED", 1)
    prepare(tmp_path, "toy", "1.0.0", (8, 8, 3), file_format=file_format)
    (path,) = (tmp_path / "toy" / "1.0.0").glob("toy-train*")
    content = bytearray(path.read_bytes())
    label = re.search(rb"label\x12.\x1a.\n\x01\x02", content, re.DOTALL)
    content[label.end() - 1] = 3
    path.write_bytes(content)
    with pytest.raises(
        ValueError,
        match="record of toy, split train must hold .* Received: .*"
        rf"{path.name}, record 2: .*orrupted .*\. Prepare the set anew",
    ):
        data.load("toy", data_dir=tmp_path)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_a_damaged_record_is_found_by_number(tmp_path, prepare, file_format):
    prepare(tmp_path, "toy", "1.0.0", (8, 8, 3), file_format=file_format)
    (path,) = (tmp_path / "toy" / "1.0.0").glob("toy-train*")
    content = bytearray(path.read_bytes())
    third = [each.start() for each in re.finditer(b"IDAT", content)][2]
    content[third : third + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="record of toy, split train must.*record 2: "
    ):
        data.load("toy", data_dir=tmp_path)


def test_records_are_found_once(tmp_path, monkeypatch):
    path = tmp_path / "set.tfrecord"
    write_records(path, [b"one", b"three"])
    assert records.TFRecords([path])[1] == b"three"
    monkeypatch.setattr(records, "_places", None)
    assert records.TFRecords([path])[1] == b"three"


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_labels_are_read_once(tmp_path, prepare, monkeypatch, file_format):
    prepare(tmp_path, "toy", "1.0.0", (8, 8, 3), file_format=file_format)
    folder = tmp_path / "toy" / "1.0.0"
    (path,) = folder.glob("toy-train*")
    count = itertools.count()
    read = tfds._Prepared._read_labels

    def counted(prepared, split):
        next(count)
        return read(prepared, split)

    monkeypatch.setattr(tfds._Prepared, "_read_labels", counted)

    def reads(labels):
        before = next(count)
        dataset = data.load("toy", data_dir=tmp_path)
        np.testing.assert_array_equal(dataset.y_train, labels)
        return next(count) - before - 1

    assert reads(range(6)) == 2  # of both splits
    assert reads(range(6)) == 0
    # Another file, also if it has the size of the one before.
    kind = records.TFRecords
    if file_format == "array_record":
        kind = records.ArrayRecords
    reader = kind([path])
    write_records(path, [reader[i] for i in reversed(range(6))])
    assert reads(range(5, -1, -1)) == 1
    kept = folder / f".{path.name}.labels.npz"
    kept.write_bytes(b"damaged")
    for expected in (1, 0):
        assert reads(range(5, -1, -1)) == expected
    # Nothing can be written here, as in a folder that is read-only.
    kept.unlink()
    kept.mkdir()
    for _ in range(2):
        assert reads(range(5, -1, -1)) == 1
    assert not list(folder.glob(".[0-9]*"))


def test_a_record_file_that_is_gone_is_named(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(files, "_IN_MEMORY", 100)
    prepare(tmp_path, "toy", "1.0.0", (8, 8, 3))
    dataset = data.load("toy", data_dir=tmp_path)
    (path,) = (tmp_path / "toy" / "1.0.0").glob("toy-train*")
    path.unlink()
    with pytest.raises(ValueError, match=rf"record 2: .*{path.name}"):
        dataset.x_train[[2, 3]]


def test_tensorflow_datasets_of_several_sizes(tmp_path, prepare):
    prepare(tmp_path, "toy", "1.0.0", (None, None, 3), ("train", "validation"))
    with pytest.raises(ValueError, match="of one size.* Pass image_size="):
        data.load("toy", data_dir=tmp_path)
    dataset = data.load("toy", data_dir=tmp_path, image_size=(32, 48))
    assert dataset.x_test.shape == (6, 32, 48, 3)


def test_tensorflow_datasets_refuses(tmp_path, prepare):
    prepare(tmp_path, "alone", "1.0.0", (8, 8, 3), ("train",))
    with pytest.raises(
        ValueError, match=r"or `validation`. .*: train\. Export"
    ):
        data.load("alone", data_dir=tmp_path)
    with pytest.raises(ValueError, match="and its class. .*'more'"):
        prepare(tmp_path, "two", "1.0.0", (8, 8, 3), more=True)
        data.load("two", data_dir=tmp_path)


# Without a version, TFDS itself looks for its own, newer one.
@pytest.mark.parametrize("name", ["cifar10", "cifar10:3.0.2", "toy:2.0.0"])
def test_another_version(tmp_path, prepare, name):
    prepare(tmp_path, name.partition(":")[0], "1.0.0", (32, 32, 3))
    message = re.escape(f"{name!r} must be prepared before it is read. ")
    with pytest.raises(FileNotFoundError, match=message):
        data.load(name, data_dir=tmp_path)


def test_unknown_to_tensorflow_datasets(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds, "_check_online", lambda *_: None)
    with pytest.raises(ValueError, match="'no_such_set'. Choose one of http"):
        data.load("no_such_set", data_dir=tmp_path, download=True)
