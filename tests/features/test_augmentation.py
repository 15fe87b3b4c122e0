"""Random augmentation inside of networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import (
    FeatureExtractor,
    Views,
    random_layers,
    split_augmentation,
)

images = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype("float32")


def network(*before, seed=1):
    """Convolutions `a` and `b` behind other layers; equal for equal seeds."""
    x = inputs = keras.Input((8, 8, 1))
    for layer in before:
        x = layer(x)
    for name in ("a", "b"):
        initializer = keras.initializers.GlorotUniform(seed)
        x = keras.layers.Conv2D(
            3, 3, padding="same", name=name, kernel_initializer=initializer
        )(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def shift(name="shift"):
    return keras.layers.RandomTranslation(0.3, 0.3, seed=5, name=name)


def several():
    return keras.Sequential(
        [keras.layers.RandomFlip(seed=1, name="flip"), shift()], name="augment"
    )


@pytest.mark.parametrize(
    ("before", "paths", "left"),
    [
        ([], [], []),
        ([shift()], ["shift"], []),
        ([several()], ["augment/flip", "augment/shift"], []),
        ([several(), shift("more")], [], []),
        # What comes behind another layer is no view of the batch.
        ([keras.layers.Rescaling(2.0), shift()], ["shift"], ["shift"]),
        ([keras.layers.CenterCrop(8, 8)], [], []),
    ],
)
def test_augmentation_that_a_network_starts_with(before, paths, left):
    whole = network(*before)
    if paths:
        assert random_layers(whole) == paths
    augment, rest = split_augmentation(whole)
    assert random_layers(rest) == left
    assert (augment is None) == (rest is whole)
    expected = whole(images, training=False)
    np.testing.assert_array_equal(rest(images, training=False), expected)
    if augment is not None:
        np.testing.assert_array_equal(augment(images, training=False), images)
        assert np.abs(augment(images, training=True) - images).max() > 0.1
        assert rest.trainable_variables == whole.trainable_variables


def test_sequential_networks():
    whole = keras.Sequential(
        [keras.Input((8, 8, 1)), shift(), network(), shift("late")]
    )
    augment, rest = split_augmentation(whole)
    assert random_layers(augment) == ["shift"]
    assert random_layers(rest) == ["late"]


@pytest.mark.parametrize("compiled", [False, True])
def test_both_networks_see_one_view(compiled):
    student, teacher = network(several()), network()
    views = Views(student, teacher)
    assert views.unshared == []
    features = [
        FeatureExtractor(each, ["a", "b"]) for each in (views.network, teacher)
    ]

    def step(x):
        view = views(x, training=True)
        return view, [
            extractor(x, training=True)
            for extractor, x in zip(features, view[:2], strict=True)
        ]

    step = tf.function(step) if compiled else step
    view, (mine, its) = step(images)
    assert np.abs(view.student - images).max() > 0.1
    np.testing.assert_array_equal(view.student, view.teacher)
    for ours, theirs in zip(mine.maps, its.maps, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    # Another step, another view; a test sees the batch.
    again, _ = step(images)
    assert np.abs(view.student - again.student).max() > 0.1
    assert views(images).teacher is images


def test_augmentation_that_the_teacher_does_not_see_is_told():
    late = network(keras.layers.Rescaling(2.0), shift())
    assert Views(late, network()).unshared == ["shift"]
    apart = Views(network(shift()), network(), keras.layers.Rescaling(2.0))
    assert apart.unshared == ["shift"]
    np.testing.assert_array_equal(
        apart(images, training=True).student, 2 * images
    )
