import dataclasses
import itertools

import numpy as np
import pytest

from keras_mhgd.data import Dataset, load


def make(count=23, side=6, channels=1, **changes):
    """A set whose labels are the indices of its images."""
    rng = np.random.default_rng(0)
    parts = {
        "name": "toy",
        "x_train": rng.integers(
            0, 256, (count, side, side, channels), np.uint8
        ),
        "y_train": np.arange(count, dtype=np.int32),
        "x_test": rng.integers(0, 256, (7, side, side, channels), np.uint8),
        "y_test": np.arange(7, dtype=np.int32),
        "classes": tuple(map(str, range(count))),
        "flip": True,
        "padding": 2,
    }
    return Dataset(**{**parts, **changes})


def epochs(dataset, batch_size, count=1, **options):
    """Batches of the first `count` epochs as lists of (images, labels)."""
    stream = dataset.train(batch_size, **options).as_numpy_iterator()
    steps = dataset.steps_per_epoch(batch_size)
    return [list(itertools.islice(stream, steps)) for _ in range(count)]


def views(dataset, epoch):
    """Image by label, back in 0..255."""
    pixels = {}
    for images, labels in epoch:
        images = np.rint(images * dataset.std + dataset.mean)
        pixels.update(zip(labels.tolist(), images, strict=True))
    return pixels


def order(epoch):
    return np.concatenate([labels for _, labels in epoch]).tolist()


def assert_same_views(actual, expected):
    for label, image in actual.items():
        np.testing.assert_array_equal(image, expected[label])


@pytest.mark.parametrize("batch_size", [1, 5, 23, 64])
def test_every_epoch_is_a_permutation(batch_size):
    dataset = make()
    first, second = epochs(dataset, batch_size, count=2)
    for epoch in (first, second):
        sizes = [len(labels) for _, labels in epoch]
        assert set(sizes[:-1]) <= {batch_size}
        assert sizes[-1] == 23 - batch_size * (len(sizes) - 1)
        assert sorted(order(epoch)) == list(range(23))
    assert order(first) != order(second)


def test_batches_have_documented_types():
    dataset = make(channels=3)
    for stream in (dataset.train(5), dataset.test(5)):
        images, labels = stream.element_spec
        assert (images.dtype, labels.dtype) == ("float32", "int32")
        assert images.shape.as_list() == [None, 6, 6, 3]


def test_view_and_order_do_not_depend_on_batch_size():
    dataset = make()
    for one, other in zip(
        epochs(dataset, 4, 3, seed=1),
        epochs(dataset, 9, 3, seed=1),
        strict=True,
    ):
        assert order(one) == order(other)
        assert_same_views(views(dataset, one), views(dataset, other))


def test_a_later_start_continues_the_same_stream():
    dataset = make()
    _, _, third = epochs(dataset, 4, 3, seed=1)
    (resumed,) = epochs(dataset, 4, seed=1, initial_epoch=2)
    for (images, labels), (expected, wanted) in zip(
        resumed, third, strict=True
    ):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, wanted)


def test_an_image_of_a_subset_is_seen_as_in_the_full_set():
    full = make()
    part = full.take(9).take(4)
    (epoch,), (whole,) = epochs(part, 3, seed=5), epochs(full, 3, seed=5)
    assert sorted(order(epoch)) == list(range(4))
    assert_same_views(views(part, epoch), views(full, whole))


def test_seed_and_epoch_change_order_and_views():
    dataset = make()
    first, second = epochs(dataset, 23, 2, seed=1)
    (other,) = epochs(dataset, 23, seed=2)
    for changed in (second, other):
        assert order(changed) != order(first)
        here, there = views(dataset, changed), views(dataset, first)
        assert any((here[i] != there[i]).any() for i in here)


def test_views_come_again_in_another_order():
    dataset = make()
    first, second, third, _ = epochs(dataset, 6, 4, views=2)
    seen = [views(dataset, epoch) for epoch in (first, second, third)]
    for label, image in seen[0].items():
        np.testing.assert_array_equal(image, seen[2][label])
    assert any(
        (image != seen[1][label]).any() for label, image in seen[0].items()
    )
    labels = [np.concatenate([y for _, y in epoch]) for epoch in (first, third)]
    assert (labels[0] != labels[1]).any()
    # The views that there would be without a limit.
    free = views(dataset, epochs(dataset, 6)[0])
    for label, image in seen[0].items():
        np.testing.assert_array_equal(image, free[label])


def test_places_tell_view_and_image():
    dataset = make()
    stream = dataset.train_with_places(6, views=2, augment=False)
    steps = dataset.steps_per_epoch(6)
    batches = list(itertools.islice(stream.as_numpy_iterator(), 3 * steps))
    expected = [{0}] * steps + [{1}] * steps + [{0}] * steps
    assert [set(view) for _, view, _ in batches] == expected
    for (_, labels), _, positions in batches:
        np.testing.assert_array_equal(labels, dataset.y_train[positions])


def test_without_augmentation_the_images_are_the_stored_ones():
    dataset = make()
    (plain,) = epochs(dataset, 5, augment=False)
    assert order(plain) == order(*epochs(dataset, 5))
    for images, labels in plain:
        np.testing.assert_array_equal(
            images, dataset.normalise(dataset.x_train[labels])
        )


def test_test_stream_is_whole_ordered_and_plain():
    dataset = make()
    batches = list(dataset.test(3).as_numpy_iterator())
    assert [len(labels) for _, labels in batches] == [3, 3, 1]
    np.testing.assert_array_equal(
        np.concatenate([images for images, _ in batches]),
        dataset.normalise(dataset.x_test),
    )
    np.testing.assert_array_equal(order(batches), dataset.y_test)


def test_no_stream_waits_for_the_tuner_at_its_end():
    dataset = make()
    for stream in (dataset.train(4), dataset.test(4)):
        assert stream.options().autotune.enabled is False


def test_moments_are_those_of_the_training_images():
    dataset = make(channels=3)
    pixels = dataset.x_train.astype(np.float64)
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-6)
    normal = dataset.normalise(dataset.x_train)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std((0, 1, 2)), 1, atol=1e-5)


def test_a_constant_channel_is_not_blown_up():
    dataset = make(x_train=np.full((23, 6, 6, 1), 7, np.uint8))
    assert dataset.std == 1
    assert not dataset.normalise(dataset.x_train).any()


def test_take_is_balanced_in_stored_order():
    labels = np.int32([2, 0, 0, 1, 0, 2, 0, 2])
    dataset = make(8, y_train=labels)

    def kept(count):
        return dataset.take(count).index_train.tolist()

    assert kept(3) == [0, 1, 3]
    assert kept(4) == [0, 1, 2, 3]  # the remainder goes to class 0
    assert kept(6) == [0, 1, 2, 3, 4, 5]  # class 1 has no second image
    assert kept(8) == list(range(8))
    part = dataset.take(4)
    np.testing.assert_array_equal(part.y_train, labels[:4])
    np.testing.assert_array_equal(part.x_train, dataset.x_train[:4])
    assert part.full_size == 8
    np.testing.assert_array_equal(part.mean, dataset.mean)
    np.testing.assert_array_equal(part.std, dataset.std)
    assert part.x_test is dataset.x_test


def test_images_that_are_not_taken_may_stay_without_labels():
    full = make(count=40, y_train=np.arange(40, dtype=np.int32) % 4)
    full = dataclasses.replace(full, classes=tuple("abcd") + full.classes[4:])
    part, all_of_it = full.take(8), full.take(8, "unlabeled")
    assert (part.unlabeled, all_of_it.unlabeled) == (0, 32)
    labelled = all_of_it.y_train >= 0
    np.testing.assert_array_equal(
        all_of_it.index_train[labelled], part.index_train
    )
    np.testing.assert_array_equal(all_of_it.y_train[labelled], part.y_train)
    np.testing.assert_array_equal(all_of_it.mean, full.mean)
    stream = all_of_it.train(16, seed=3).as_numpy_iterator()
    found = list(itertools.islice(stream, all_of_it.steps_per_epoch(16)))
    weights = np.concatenate([each[2] for each in found])
    assert (weights.sum(), len(weights)) == (8, 40)
    # The views and the order are those of the whole set with labels.
    (expected,) = epochs(full, 16, seed=3)
    for (images, labels, weight), (wanted, true) in zip(
        found, expected, strict=True
    ):
        np.testing.assert_array_equal(images, wanted)
        np.testing.assert_array_equal(labels, np.where(weight, true, 0))
    for refused in (lambda: all_of_it.take(4), lambda: all_of_it.hold_out(0.5)):
        with pytest.raises(ValueError, match="a label for each.*32 without"):
            refused()


def test_a_later_step_continues_the_epoch():
    dataset = make()
    (whole,) = epochs(dataset, 5, seed=1, initial_epoch=2)
    stream = dataset.train(5, seed=1, initial_epoch=2, initial_step=3)
    later = list(stream.take(3).as_numpy_iterator())
    (following,) = epochs(dataset, 5, seed=1, initial_epoch=3)
    for found, expected in zip(later, [*whole[3:], following[0]], strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_hold_out_takes_the_same_part_of_each_class():
    labels = np.repeat(np.int32([0, 1, 2]), [40, 20, 10])
    dataset = make(70, y_train=labels)
    part = dataset.hold_out(0.2, seed=3)
    np.testing.assert_array_equal(np.bincount(part.y_test), [8, 4, 2])
    np.testing.assert_array_equal(np.bincount(part.y_train), [32, 16, 8])
    held_out = np.setdiff1d(np.arange(70), part.index_train)
    for images, labels, index in (
        (part.x_train, part.y_train, part.index_train),
        (part.x_test, part.y_test, held_out),
    ):
        np.testing.assert_array_equal(images, dataset.x_train[index])
        np.testing.assert_array_equal(labels, dataset.y_train[index])
    np.testing.assert_array_equal(part.mean, dataset.mean)
    assert part.full_size == 70


def test_hold_out_depends_on_the_seed_alone():
    dataset = make(70, y_train=np.arange(70, dtype=np.int32) % 5)
    first, again, other = (
        dataset.hold_out(0.3, seed).index_train for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_glyphs_are_never_mirrored():
    # A left half in white: any mirrored view would be white on the right.
    glyphs = load("glyphs", subset=300)
    assert (glyphs.flip, glyphs.padding) == (False, 2)
    images = np.zeros_like(glyphs.x_train)
    images[:, :, :14] = 255
    half = dataclasses.replace(glyphs, x_train=images)
    (epoch,) = epochs(half, 300)
    assert (epoch[0][0][..., 5, 0] > 0).all()
    assert (epoch[0][0][..., 22, 0] < 0).all()


def uint8(*shape):
    return np.zeros(shape, np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": np.zeros((23, 6, 6, 1), np.float32)},
            "toy: `x_train` must be a non-empty uint8 array of shape "
            r"\(count, height, width, channels\)\. Received: float32 array",
        ),
        ({"x_train": [1]}, "`x_train` must be .* Received: list"),
        ({"x_test": uint8(7, 6, 6)}, r"`x_test` .* shape \(7, 6, 6\)\. Conv"),
        ({"x_train": uint8(0, 6, 6, 1)}, r"shape \(0, 6, 6, 1\)"),
        ({"x_test": uint8(7, 6, 5, 1)}, "must have the same height, width"),
        (
            {"y_train": np.zeros(22, np.int32)},
            r"`y_train` must be an int32 array with one label for each of the "
            r"23 images\. Received: int32 array of shape \(22,\)\. Convert",
        ),
        ({"y_test": np.zeros(7, np.int64)}, "Received: int64 array"),
        (
            {"y_test": np.int32([0, 1, 23, 1, -1, 0, 0])},
            r"must lie in \[0, 23\), the number of classes\. Received: "
            r"y_test\[2\] = 23 and 1 more outside\. Number",
        ),
        ({"padding": 6}, r"`padding` must lie in 0\.\.5, .* padding=6"),
        ({"padding": -1}, r"`padding` must lie in 0\.\.5, .* padding=-1"),
        (
            {"index_train": np.arange(5)},
            r"`index_train` must hold one integer in \[0, full_size\) for each "
            "of the 23",
        ),
        ({"full_size": 22, "index_train": np.arange(23)}, "full_size=22"),
    ],
)
def test_construction_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: d.train(0), ValueError, "`batch_size` must be at least 1"),
        (lambda d: d.test(-3), ValueError, "Received: batch_size=-3"),
        (lambda d: d.steps_per_epoch(2.0), TypeError, "must be an integer"),
        (lambda d: d.train(True), TypeError, "batch_size=True of type bool"),
        (lambda d: d.train(1, seed="1"), TypeError, "`seed` must be an int"),
        (lambda d: d.train(1, seed=2**63), ValueError, "must fit 64 bits"),
        (
            lambda d: d.train(1, initial_epoch=-1),
            ValueError,
            "`initial_epoch` must be 0 or more. Received: initial_epoch=-1",
        ),
        (
            lambda d: d.take(24),
            ValueError,
            r"`subset` must lie in 1\.\.23, .* Received: subset=24\. Pass",
        ),
        (lambda d: d.take(0), ValueError, "Received: subset=0"),
        (lambda d: d.take(1.5), TypeError, "subset=1.5 of type float"),
        (
            lambda d: d.hold_out(1.0),
            ValueError,
            r"`fraction` must lie between 0 and 1 .* fraction=1\.0, 23",
        ),
        (lambda d: d.hold_out(0.01), ValueError, "images on both sides"),
        (lambda d: d.hold_out(0.2, -1), ValueError, "Received: seed=-1"),
        (lambda d: d.hold_out(0.2, 1.5), TypeError, "`seed` must be an int"),
        (
            lambda d: d.normalise(np.zeros((6, 6, 1))),
            ValueError,
            "`images` must be uint8, .* Received: float64 array",
        ),
        (
            lambda d: d.normalise(uint8(6, 6, 3)),
            ValueError,
            r"with 1 channel\(s\) last",
        ),
    ],
)
def test_methods_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call(make())


def test_steps_per_epoch_rounds_up():
    dataset = make()
    assert [dataset.steps_per_epoch(n) for n in (1, 22, 23, 99)] == [
        23,
        2,
        1,
        1,
    ]


def test_shape_and_classes():
    dataset = make(side=8, channels=3)
    assert dataset.input_shape == (8, 8, 3)
    assert dataset.num_classes == 23
