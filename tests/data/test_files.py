"""Images that are read from files when they are needed."""

import contextlib
import dataclasses
import itertools
import os

import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import data
from keras_mhgd.data import Dataset, Files, Mixing
from keras_mhgd.data import dataset as dataset_module
from keras_mhgd.data import files as files_module
from keras_mhgd.data.files import Joined
from keras_mhgd.distribution import fitting

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Files of images 12 x 10 and, the last one, 9 x 14."""
    folder = tmp_path_factory.mktemp("images")
    found = []
    for number in range(24):
        shape = (9, 14, 3) if number == 23 else (12, 10, 3)
        image = tf.constant(RNG.integers(0, 256, shape, np.uint8))
        png = number % 2
        encode = tf.io.encode_png if png else tf.io.encode_jpeg
        found.append(folder / f"{number:02}.{'png' if png else 'jpg'}")
        found[-1].write_bytes(encode(image).numpy())
    return found


def both(paths, **changes):
    """Sets of the same images, in files and in memory."""
    labels = np.arange(len(paths), dtype=np.int32) % 4
    files = Files(paths, (8, 8))
    rest = {"classes": tuple("abcd"), "flip": True, "padding": 1, **changes}
    return [
        Dataset("set", x, labels, x[:5], labels[:5], **rest)
        for x in (files, files[:])
    ]


def batches(dataset, count, batch_size=7, **options):
    stream = dataset.train(batch_size, **options)
    return list(itertools.islice(stream.as_numpy_iterator(), count))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_it_stands_for_an_array(paths):
    files = Files(paths, (8, 6))
    whole = files[:]
    assert whole.dtype == files.dtype == np.uint8
    assert whole.shape == files.shape == (24, 8, 6, 3)
    assert (len(files), files.size, files.ndim) == (24, whole.size, 4)
    none = np.zeros(0, int)
    for index in (3, -1, slice(2, 9, 3), np.array([5, 0, 5]), none):
        np.testing.assert_array_equal(files[index], whole[index])
    chosen = np.array([7, 2, 20])
    np.testing.assert_array_equal(files.part(chosen)[:], whole[chosen])
    for position in (0, 23):
        found = files.read(tf.constant(position, tf.int64))
        np.testing.assert_array_equal(found, whole[position])
    unsized = files.read_unsized(tf.constant(23))
    assert unsized.shape == (9, 14, 3)


@pytest.mark.slow
def test_batches_are_those_of_images_in_memory(paths):
    """Cut, held out, of later epochs, and in tests."""
    for change in (
        lambda each: each,
        lambda each: each.hold_out(0.25),
        lambda each: each.take(9),
        lambda each: each.take(9, "unlabeled"),
    ):
        # All are in the sample whose mean and deviation are taken.
        lazy, kept = (change(each) for each in both(paths))
        assert isinstance(lazy.x_train, Files)
        np.testing.assert_array_equal(lazy.mean, kept.mean)
        np.testing.assert_array_equal(lazy.std, kept.std)
        for options in ({}, {"views": 2, "initial_epoch": 3}):
            assert_same(
                batches(lazy, 8, **options), batches(kept, 8, **options)
            )
        assert_same(
            list(lazy.test(3).as_numpy_iterator()),
            list(kept.test(3).as_numpy_iterator()),
        )


def test_only_what_is_needed_is_read(paths, tmp_path):
    """A later start and a share read no other file."""
    copies = []
    for path in paths:
        copies.append(tmp_path / path.name)
        copies[-1].write_bytes(path.read_bytes())
    lazy, _ = both(copies)
    _ = lazy.mean  # reads all, once
    steps = lazy.train_with_places(4)
    places = [each[2].numpy() for each in steps.take(6)]
    first = np.concatenate(places[:4])
    for position in first:
        copies[position].unlink()
    later = lazy.train(4, initial_step=4).take(2)
    assert sum(len(labels) for _, labels in later) == 8
    with pytest.raises(tf.errors.NotFoundError, match="No such file"):
        next(iter(lazy.train(4)))

    def share(batches):
        return batches.map(lambda *batch: [part[2:] for part in batch])

    for position in first:
        copies[position].write_bytes(paths[position].read_bytes())
    for position in np.concatenate([each[:2] for each in places]):
        copies[position].unlink()
    parts = list(lazy.train(4, share=share).take(6))
    assert [len(labels) for _, labels in parts] == [2] * 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0 bytes"),
        (b"\xff\xd8\xff\xe0 no image", "JPEG"),
        (None, "must be a file"),
    ],
)
def test_a_damaged_file_is_found_by_name(paths, tmp_path, content, message):
    copies = list(paths)
    copies[13] = tmp_path / "broken.png"
    if content is None:
        copies[13].mkdir()
    else:
        copies[13].write_bytes(content)
    files = Files(copies, (8, 8))  # reads none
    files.require_whole(range(13))
    for positions in (None, [20, 13]):
        with pytest.raises(ValueError, match=message) as caught:
            files.require_whole(positions)
        assert "broken.png" in str(caught.value)


def test_images_of_another_size_are_found_by_name(paths):
    files = Files(paths)
    assert files.shape == (24, 12, 10, 3)
    with pytest.raises(ValueError, match=r"of one size.* 23\.png|23\.png"):
        files[:]
    with pytest.raises(ValueError, match=r"23\.png of shape \(9, 14, 3\)"):
        files.require_whole()


def test_a_fingerprint_tells_files_and_size(paths):
    expected = Files(paths, (8, 8)).fingerprint()
    assert Files(paths, (8, 8)).fingerprint() == expected
    assert Files(paths, (8, 6)).fingerprint() != expected
    assert Files(paths[1:], (8, 8)).fingerprint() != expected
    assert Files(paths[::-1], (8, 8)).fingerprint() != expected


def test_a_step_looks_at_its_own_images_only(paths, tmp_path):
    """And at those that are read ahead; at the end of an epoch, at the test."""
    copies = []
    for path in paths:
        copies.append(tmp_path / path.name)
        copies[-1].write_bytes(path.read_bytes())
    dataset = dataclasses.replace(
        both(copies)[0], x_test=Files(copies[:5], (8, 8))
    )
    places = dataset.train_with_places(1, seed=3, initial_epoch=1)
    order = [int(each[2][0]) for each in places.take(len(paths))]
    copies[order[20]].write_bytes(b"")
    dataset.require_readable(1, 3, 1, 2)  # its batches end before
    with pytest.raises(ValueError, match=copies[order[20]].name):
        dataset.require_readable(1, 3, 1, 20)
    with pytest.raises(ValueError, match=copies[order[20]].name):
        dataset.require_readable(1, 3, 1, 18)
    copies[order[20]].write_bytes(paths[order[20]].read_bytes())
    copies[2].unlink()  # a test image, and one of the first steps'
    with pytest.raises(ValueError, match=copies[2].name):
        dataset.require_readable(1, 3, 1, len(paths))


def test_a_step_looks_at_the_images_that_its_own_are_mixed_with(
    paths, tmp_path
):
    """In the views of the epoch, which come again."""
    copies = []
    for path in paths:
        copies.append(tmp_path / path.name)
        copies[-1].write_bytes(path.read_bytes())
    dataset = Dataset(
        "set",
        Files(copies, (8, 8)),
        np.arange(24, dtype=np.int32),
        np.zeros((1, 8, 8, 3), np.uint8),
        np.zeros(1, np.int32),
        classes=tuple(map(str, range(24))),
        mixing=Mixing(mixup_alpha=1.0, cutmix_alpha=None),
    )
    stream = dataset.train_with_places(1, 3, 4, views=2, initial_step=2)
    own, shown = set(), set()
    ahead = dataset_module._PARALLEL + dataset_module._WAITING
    for (_, shares), _, positions in stream.take(ahead):
        own.add(int(positions[0]))
        # Each image has a class of its own.
        shown.update(np.flatnonzero(shares[0]).tolist())
    assert shown > own
    for number in range(24):
        copies[number].write_bytes(b"")
        read = contextlib.nullcontext()
        if number in shown:
            read = pytest.raises(ValueError, match=copies[number].name)
        with read:
            dataset.require_readable(1, 3, 4, 2, views=2)
        copies[number].write_bytes(paths[number].read_bytes())


def test_joined_sets_are_one_array(paths):
    array = RNG.integers(0, 256, (5, 8, 8, 3), np.uint8)
    files = Files(paths, (8, 8))
    joined = Joined([array, files, array[:2]])
    whole = np.concatenate([array, files[:], array[:2]])
    assert joined.shape == whole.shape and joined.size == whole.size
    for index in (4, 5, -1, slice(3, 30, 4), np.array([30, 0, 6])):
        np.testing.assert_array_equal(joined[index], whole[index])
    for position in (0, 4, 5, 28, 29, 30):
        found = joined.read(tf.constant(position, tf.int64))
        np.testing.assert_array_equal(found, whole[position])
    chosen = np.array([1, 6, 28, 30])
    np.testing.assert_array_equal(joined.part(chosen)[:], whole[chosen])
    with pytest.raises(ValueError, match="must rise"):
        joined.part(chosen[::-1])
    joined.require_whole([0, 7, 30])
    other = Joined([array[::-1].copy(), files])
    assert joined.fingerprint() != other.fingerprint()


def test_images_without_labels_from_files_join_images_in_memory(paths):
    _, kept = both(paths)
    more = kept.with_unlabeled(Files(paths[:6], (8, 8)))
    assert (len(more.x_train), more.unlabeled) == (30, 6)
    np.testing.assert_array_equal(more.mean, kept.mean)
    found = batches(more, 5)
    weights = np.concatenate([each[2] for each in found])
    assert sorted(weights) == [0] * 6 + [1] * 24
    with pytest.raises(ValueError, match="size of the others"):
        kept.with_unlabeled(Files(paths[:6], (8, 9)))
    grey = Dataset(
        "grey",
        kept.x_train[..., :1],
        kept.y_train,
        kept.x_test[..., :1],
        kept.y_test,
        kept.classes,
    )
    with pytest.raises(
        ValueError,
        match=r"\(8, 8, 1\): height, width and channels. Received: images of "
        r"shape \(6, 8, 8, 3\). Resize or convert them",
    ):
        grey.with_unlabeled(Files(paths[:6], (8, 8)))


def test_a_large_folder_is_not_read_into_memory(paths, tmp_path, monkeypatch):
    for part, count in (("train", 8), ("test", 4)):
        for number in range(count):
            folder = tmp_path / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            os.link(paths[number], folder / paths[number].name)
    kept = data.load(tmp_path)
    assert isinstance(kept.x_train, np.ndarray)
    monkeypatch.setattr(files_module, "_IN_MEMORY", 1000)
    lazy = data.load(tmp_path)
    assert isinstance(lazy.x_train, Files) and isinstance(lazy.x_test, Files)
    assert_same(batches(lazy, 4), batches(kept, 4))


@pytest.mark.parametrize("workers", [2, 3])
def test_each_worker_reads_its_own_files_only(paths, tmp_path, workers):
    """Parts of all batches, also of the smaller last one."""
    expected, _ = both(paths)
    whole = batches(expected, 8)
    kept = list(paths)
    for worker in range(workers):

        def share(places, worker=worker):
            return places.flat_map(
                lambda *batch: fitting._rows(batch, workers, worker, 1, 0)
            )

        own = expected.train_with_places(7, share=share).take(4)
        needed = np.concatenate([positions for _, _, positions in own])
        folder = tmp_path / str(worker)
        folder.mkdir()
        for number, path in enumerate(paths):
            kept[number] = folder / path.name
            if number in needed:
                os.link(path, kept[number])
        dataset = dataclasses.replace(
            expected,
            x_train=Files(kept, (8, 8)),
            moments=expected._moments,
        )
        found = batches(dataset, 4, share=share)
        assert len(needed) < len(paths) and len(found) == 4
        for (images, labels), (all_images, all_labels) in zip(
            found, whole[:4], strict=True
        ):
            size = len(all_labels)
            first, end = (
                -(-part * size // workers) for part in (worker, worker + 1)
            )
            rows = slice(first, end)
            np.testing.assert_array_equal(images, all_images[rows])
            np.testing.assert_array_equal(labels, all_labels[rows])
