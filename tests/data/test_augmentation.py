import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_mhgd.data import augmentation


def views(seed, size=64, padding=2, flip=True):
    seed = tf.constant(seed, tf.int64)
    return augmentation.draw_views(seed, size, padding, flip).numpy()


def by_hand(image, view, padding):
    pad = ((padding, padding), (padding, padding), (0, 0))
    top, left, mirrored = view
    height, width, _ = image.shape
    crop = np.pad(image, pad, mode="reflect")
    crop = crop[top : top + height, left : left + width]
    return crop[:, ::-1] if mirrored else crop


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.integers(1, 3),
    padding=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_views_are_crops_of_the_reflected_image(
    height, width, channels, padding, seed
):
    padding = min(padding, height - 1, width - 1)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (5, height, width, channels), np.uint8)
    drawn = views((seed, 0), 5, padding)
    result = augmentation.apply_views(images, drawn, padding)
    assert result.dtype == tf.uint8
    for image, view, seen in zip(images, drawn, result.numpy(), strict=True):
        np.testing.assert_array_equal(seen, by_hand(image, view, padding))
        one = augmentation.apply_view(tf.constant(image), view, padding)
        np.testing.assert_array_equal(one, seen)


def test_draws_cover_their_range_evenly():
    drawn = views((3, 5), size=20000, padding=2)
    assert drawn.dtype == np.int32
    for column, values in enumerate((5, 5, 2)):
        counts = np.bincount(drawn[:, column])
        assert len(counts) == values
        # Five standard deviations of a binomial count.
        expected = 20000 / values
        assert np.abs(counts - expected).max() < 5 * expected**0.5


def test_no_flip_never_mirrors():
    assert not views((1, 2), size=1000, flip=False)[:, 2].any()


@pytest.mark.parametrize("other", [(0, 1), (1, 0), (-1, 0), (2**62, 0)])
def test_draws_depend_on_seed_and_epoch(other):
    np.testing.assert_array_equal(views(other), views(other))
    assert (views(other) != views((0, 0))).any()


def test_compiled_draws_equal_eager_ones():
    compiled = tf.function(augmentation.draw_views)
    seed = tf.constant((4, 2), tf.int64)
    drawn = compiled(seed, 64, 2, True)
    np.testing.assert_array_equal(drawn.numpy(), views((4, 2)))
