import itertools

import keras
import numpy as np
import pytest

import keras_mhgd
from keras_mhgd import methods
from keras_mhgd.data import Dataset


@pytest.fixture
def bars(images):
    """The images as a data set: two batches of 16."""
    x, y = images
    x = np.clip(128 + 60 * x, 0, 255).astype("uint8")
    y = y.astype("int32")
    return Dataset("bars", x, y, x, y, ("a", "b", "c"), padding=1)


def trained(distiller, method, bars, cached, epochs):
    """The student after some epochs over two views."""
    keras.utils.set_random_seed(3)
    model = distiller(method())
    stream = {"batch_size": 16, "seed": 5, "views": 2}
    if cached:
        data = keras_mhgd.TeacherCache(model, bars, **stream).train()
    else:
        data = bars.train(**stream)
    history = model.fit(
        data, epochs=epochs, steps_per_epoch=2, shuffle=False, verbose=0
    )
    return model, history.history


METHODS = {
    "mhgd": lambda: methods.MHGD(num_heads=2, preparation_epochs=2),
    "per_feature": lambda: methods.MHGD(
        num_heads=2, preparation_epochs=2, clipping="per_feature"
    ),
    "kd_svd": lambda: methods.get("kd_svd"),
    "soft_logits": lambda: methods.get("soft_logits"),
    "rkd": lambda: methods.get("rkd"),
    "fitnet": lambda: methods.get("fitnet"),
    "mhgd+fitnet+soft_logits": lambda: methods.get(
        [METHODS["mhgd"](), "fitnet", "soft_logits"]
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_gives_the_weights_of_training_without(distiller, bars, name):
    """To the last bit while each view is seen for the first time.

    Later the same images share a batch with others, and a convolution's
    round-off depends on its batch.
    """
    for epochs, tolerance in ((2, 0.0), (4, 1e-4)):
        found, expected = (
            trained(distiller, METHODS[name], bars, cached, epochs)
            for cached in (True, False)
        )
        for a, b in zip(
            found[0].student.get_weights(),
            expected[0].student.get_weights(),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
        assert found[1].keys() == expected[1].keys()


def test_the_teacher_runs_once_a_view(distiller, small_net, bars):
    model = distiller(METHODS["mhgd"]())
    data = keras_mhgd.TeacherCache(model, bars, 16, views=2).train()
    calls = []
    model.targets = calls.append
    model.fit(data, epochs=3, steps_per_epoch=2, shuffle=False, verbose=0)
    assert not calls


def test_a_later_start_continues_the_same_stream(distiller, bars):
    cache = keras_mhgd.TeacherCache(distiller(), bars, 16, views=2)
    steps = bars.steps_per_epoch(16)
    whole = itertools.islice(cache.train(), steps, 2 * steps)
    later = itertools.islice(cache.train(initial_epoch=1), steps)
    for a, b in zip(whole, later, strict=True):
        np.testing.assert_array_equal(a[0].images, b[0].images)
        for one, other in zip(
            a[0].features.vectors, b[0].features.vectors, strict=True
        ):
            np.testing.assert_array_equal(one, other)


def test_mhgd_keeps_vectors_alone(distiller, bars):
    cache = keras_mhgd.TeacherCache(distiller(), bars, 16, views=1)
    taught, _ = next(iter(cache.train()))
    features = taught.features
    assert features.maps == []
    assert [each.shape for each in features.vectors] == [(16, 6), (16, 8)]
