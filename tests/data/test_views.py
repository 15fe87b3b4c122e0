"""The view of an image is the same wherever and whenever it is made."""

import collections

import keras
import pytest

import keras_mhgd
from benchmarks.correctness.cluster import results, tf_configs
from tests.data import viewing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    viewing.write_images(path)
    return path


@pytest.fixture(scope="module")
def elsewhere(folder):
    """What each device of two sees, by kind: as replicas, and as workers."""

    def seen(variables):
        printed = results("tests.data.viewing", ["2", folder], variables)
        return [dict(collections.ChainMap(*each)) for each in printed]

    workers = [{"TF_CONFIG": config} for config in tf_configs(2)]
    return seen([{}]), seen(workers)


@pytest.fixture(scope="module")
def distiller():
    """Of networks for images of any size and labels of any kind."""

    def network(name):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, name=f"{name}_map")(inputs)
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(viewing.COUNT)(x))

    model = keras_mhgd.Distiller(
        network("student"), network("teacher"), "soft_logits"
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    return model


def seen(batches):
    return dict(collections.ChainMap(*map(viewing.hashes, batches)))


@pytest.mark.parametrize("kind", viewing.AUGMENTATIONS)
def test_a_view_is_the_same_everywhere(folder, elsewhere, distiller, kind):
    """To the last bit, and with its label.

    On one device, on two that share a batch, on two workers, after resumption
    within an epoch, and beside a cached teacher's outputs.
    """
    dataset = viewing.dataset_of(folder, kind)
    stream = {"batch_size": viewing.BATCH, "seed": viewing.SEED}
    steps = dataset.steps_per_epoch(viewing.BATCH)
    count = viewing.EPOCHS * steps
    whole = list(dataset.train_with_places(**stream).take(count))
    expected = seen(whole)
    assert len(expected) == viewing.EPOCHS * viewing.COUNT
    replicas, workers = elsewhere
    (found,) = replicas
    assert found[kind] == expected
    one, other = (each[kind] for each in workers)
    assert not one.keys() & other.keys() and min(len(one), len(other)) > 16
    assert one | other == expected
    later = dataset.train_with_places(**stream, initial_epoch=1, initial_step=1)
    assert seen(later.take(steps - 1)) == seen(whole[steps + 1 :])
    cache = keras_mhgd.TeacherCache(distiller, dataset, **stream, views=1)
    taught = [
        ((each.images, labels), *places)
        for (each, labels), (_, *places) in zip(
            cache.train().take(steps), whole[:steps], strict=True
        )
    ]
    assert seen(taught) == seen(whole[:steps])
