"""Sequences of tokens, and the embedded set of words."""

import itertools

import keras
import numpy as np
import pytest

from keras_mhgd import data
from keras_mhgd.data import Tokens, npz, random_layers
from keras_mhgd.reuse.teacher_cache import fingerprint_of

TOKENS = ("", *"abcde")
LENGTH = 6


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(1, len(TOKENS), (count, LENGTH), np.uint8)
    lengths = rng.integers(1, LENGTH + 1, count)
    return x * (np.arange(LENGTH) < lengths[:, np.newaxis])


def make(count=23, **changes):
    """A set whose labels are the indices of its sequences."""
    parts = {
        "name": "toy",
        "x_train": rows(count),
        "y_train": np.arange(count, dtype=np.int32),
        "x_test": rows(7, 1),
        "y_test": np.arange(7, dtype=np.int32),
        "classes": tuple(map(str, range(count))),
        "tokens": TOKENS,
    }
    return Tokens(**(parts | changes))


def epochs(dataset, batch_size, count=1, **options):
    stream = dataset.train(batch_size, **options).as_numpy_iterator()
    steps = dataset.steps_per_epoch(batch_size)
    return [list(itertools.islice(stream, steps)) for _ in range(count)]


# The embedded set.


@pytest.fixture(scope="module")
def languages():
    return data.load("languages")


def test_languages(languages):
    assert isinstance(languages, Tokens)
    assert languages.name == "languages"
    assert languages.x_train.shape == (60000, 20)
    assert languages.x_test.shape == (10000, 20)
    assert languages.input_shape == languages.view_shape == (20,)
    assert languages.num_classes == 40 == len(set(languages.classes))
    np.testing.assert_array_equal(np.bincount(languages.y_train), 1500)
    np.testing.assert_array_equal(np.bincount(languages.y_test), 250)
    assert len(set(languages.tokens)) == len(languages.tokens) == 145
    assert languages.x_train.max() == 144


def test_no_word_occurs_twice(languages):
    """Neither in two languages, nor in training and test."""
    words = languages.decode(languages.x_train)
    words += languages.decode(languages.x_test)
    assert len(set(words)) == len(words) == 70000
    assert all(word == word.lower() for word in words)
    assert set(map(len, words)) == set(range(3, 21))


def test_most_languages_are_in_one_script(languages):
    cyrillic = languages.y_train[languages.x_train[:, 0] >= find("а")]
    assert languages.tokens[find("а")] == "а"
    assert len(set(cyrillic.tolist())) == 5
    assert len(cyrillic) == 5 * 1500


def find(letter):
    return data.load("languages").tokens.index(letter)


def test_subset_and_hold_out(languages):
    part = data.load("languages", subset=400)
    np.testing.assert_array_equal(np.bincount(part.y_train), 10)
    assert part.tokens == languages.tokens
    np.testing.assert_array_equal(part.x_train, languages.x_train[:400])
    held = part.hold_out(0.2)
    assert isinstance(held, Tokens)
    assert (len(held.x_train), len(held.x_test)) == (320, 80)
    inside = held.decode(held.x_train) + held.decode(held.x_test)
    assert sorted(inside) == sorted(part.decode(part.x_train))


# Streams.


def test_streams_give_the_stored_rows():
    dataset = make()
    for stream in (dataset.train(5), dataset.test(5)):
        x, y = stream.element_spec
        assert (x.dtype, y.dtype) == ("int32", "int32")
        assert x.shape.as_list() == [None, LENGTH]
    first, second = epochs(dataset, 5, 2)
    seen = [np.concatenate([y for _, y in each]) for each in (first, second)]
    assert (seen[0] != seen[1]).any()
    for epoch in (first, second):
        for x, y in epoch:
            np.testing.assert_array_equal(x, dataset.x_train[y])
    x, y = next(iter(dataset.test(7)))
    np.testing.assert_array_equal(x, dataset.x_test)
    np.testing.assert_array_equal(dataset.normalise(dataset.x_test), x)


def test_a_later_start_continues_the_same_stream():
    dataset = make()
    _, second = epochs(dataset, 4, 2, seed=3, views=2)
    stream = dataset.train(4, 3, initial_epoch=1, initial_step=2, views=2)
    for (x, y), (expected, wanted) in zip(
        stream.as_numpy_iterator(), second[2:], strict=False
    ):
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_array_equal(y, wanted)


def test_sequences_without_labels():
    part = make().take(9, others="unlabeled")
    (epoch,) = epochs(part, 8)
    weights = np.concatenate([weight for *_, weight in epoch])
    assert weights.sum() == 9
    more = make().with_unlabeled(rows(4, 2))
    assert isinstance(more, Tokens)
    assert more.unlabeled == 4
    assert len(more.x_train) == 27


def test_fingerprints_differ_by_what_is_trained_on():
    dataset = make()
    assert fingerprint_of(dataset) == fingerprint_of(make())
    assert fingerprint_of(dataset) != fingerprint_of(dataset.take(9))


def test_decodes():
    assert make().decode([[2, 1, 4, 0, 0, 0], [3, 0, 0, 0, 0, 0]]) == [
        "bad",
        "c",
    ]


# What is refused.


def changed(row, column, value):
    x = rows(23)
    x[row, column] = value
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": rows(23).astype(float)}, "`x_train` must be .* float64"),
        ({"x_test": rows(7)[0]}, r"`x_test` must be .* shape \(6,\)"),
        ({"x_test": [[1]]}, "`x_test` must be .*Received: list"),
        ({"x_train": rows(23)[:, :4]}, "the same .* shape .23, 4."),
        ({"x_train": changed(3, 0, 6)}, r"`x_train` must .* \[0, 6\).* to 6"),
        ({"x_train": changed(3, 0, 0)}, r"begin with a token.*train\[3\]"),
        (
            {"x_train": np.array([[1, 0, 2]] * 23), "x_test": rows(7)[:, :3]},
            r"zeros must come last.*x_train\[0\] = \[1, 0, 2\] and 22 more",
        ),
        ({"tokens": ()}, "Name all tokens"),
        ({"flip": True}, "no augmentation, which is for images"),
        ({"padding": 2}, "no augmentation, which is for images"),
        ({"mixing": random_layers.Mixing()}, "no augmentation"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ValueError, match=f"toy: .*{message}"):
        make(**changes)


@pytest.mark.parametrize("name", ["crop", "standard", "strong"])
def test_refuses_augmentation_by_name(name):
    with pytest.raises(
        ValueError, match=f"toy: `augmentation` must be none .*'{name}'"
    ):
        make().augmented(name)
    assert isinstance(make().augmented("none"), Tokens)


def test_refuses_layers_and_sizes():
    with pytest.raises(ValueError, match="`augmentation` must be none"):
        make().augmented(keras.layers.RandomFlip())
    with pytest.raises(ValueError, match="`image_size` must be left out for"):
        data.load("languages", image_size=(32, 32))
    with pytest.raises(ValueError, match="`images` must be numbers of tokens"):
        make().normalise(np.zeros((2, 6)))


# .npz files.


def arrays(**changes):
    dataset = make()
    parts = {
        name: getattr(dataset, name)
        for name in ("x_train", "y_train", "x_test", "y_test", "tokens")
    }
    return parts | changes


def test_npz_with_tokens(tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays())
    dataset = npz.read(path)
    assert isinstance(dataset, Tokens)
    assert dataset.tokens == TOKENS
    assert dataset.num_classes == 23
    np.testing.assert_array_equal(dataset.x_train, make().x_train)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.array(TOKENS[:4])}, r"set.npz: .* in \[0, 4\)"),
        ({"x_train": np.zeros((23, 6, 6, 1), "uint8")}, "shape .count, length"),
        ({"y_train": np.full(23, -1)}, "`y_train` must lie in"),
    ],
)
def test_npz_refuses(tmp_path, changes, message):
    np.savez(tmp_path / "set.npz", **arrays(**changes))
    with pytest.raises(ValueError, match=message):
        npz.read(tmp_path / "set.npz")
