import keras
import numpy as np
import pytest

from keras_mhgd.methods.pieces.projection import Projection


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 5), (2, 5)])
def test_is_a_matrix_at_each_position(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = Projection(7)
    found = layer(x)
    assert len(layer.weights) == 1
    assert found.shape == layer.compute_output_shape(shape) == (*shape[:-1], 7)
    np.testing.assert_allclose(found, x @ layer.kernel.numpy(), atol=1e-5)
    same = Projection(5)
    np.testing.assert_array_equal(same(x), x)
    assert same.weights == []


def test_config_round_trip():
    layer = Projection(3, kernel_initializer="zeros", name="mine")
    config = keras.saving.serialize_keras_object(layer)
    found = keras.saving.deserialize_keras_object(config)
    assert keras.saving.serialize_keras_object(found) == config
    assert not np.any(found(np.ones((2, 4))))


def test_save_and_load(tmp_path):
    x = np.ones((2, 4, 4, 3), "float32")
    model = keras.Sequential([keras.Input((4, 4, 3)), Projection(5)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


def test_wrong_arguments():
    with pytest.raises(
        ValueError, match="`units` must be 1 or .*units=0. Pass"
    ):
        Projection(0)
    with pytest.raises(ValueError, match="`inputs` must have a known number"):
        Projection(3).build((None, 4, None))
