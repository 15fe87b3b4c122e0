import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.dist import DIST, correlation_losses


def test_hand_value_of_two_samples_and_two_classes():
    """Correlations of two numbers are signs.

    Student rows (0.8, 0.2) and (0.6, 0.4), teacher (0.9, 0.1) and (0.2, 0.8).
    By rows: 1 and -1, mean 0, distance 1. By columns: both networks' first
    class falls from sample to sample and the second rises: 1 and 1, 0.
    """
    student = tf.math.log([[0.8, 0.2], [0.6, 0.4]])
    teacher = tf.math.log([[0.9, 0.1], [0.2, 0.8]])
    inter, intra = correlation_losses(student, teacher)
    np.testing.assert_allclose([inter, intra], [1, 0], atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_hand_value_of_three_classes(temperature):
    """Student (2, 1, 1) / 4, teacher (3, 2, 1) / 6, at each temperature.

    Centred: (2, -1, -1) / 12 and (1, 0, -1) / 6, so rho = 3 / sqrt(6 2) =
    sqrt(3) / 2. A single sample has constant columns: 1. Both times T^2.
    """
    student = temperature * np.log([[2.0, 1.0, 1.0]])
    teacher = temperature * np.log([[3.0, 2.0, 1.0]])
    inter, intra = correlation_losses(student, teacher, temperature)
    expected = temperature**2 * (1 - np.sqrt(3) / 2)
    assert float(inter) == pytest.approx(expected, rel=1e-12)
    assert float(intra) == pytest.approx(temperature**2, rel=1e-12)


def test_is_numpys_correlation():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 6, 4))
    ours, theirs = (tf.nn.softmax(x).numpy() for x in (student, teacher))
    rows = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)]
    columns = [np.corrcoef(ours[:, c], theirs[:, c])[0, 1] for c in range(4)]
    found = correlation_losses(student, teacher)
    expected = [1 - np.mean(rows), 1 - np.mean(columns)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_standardize_comes_first():
    teacher = np.random.default_rng(0).normal(size=(6, 4))
    found = correlation_losses(7 * teacher - 3, teacher, standardize=True)
    np.testing.assert_allclose(found, 0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1.0}, "`beta` must be 0 or more. Received: beta=-1.0"),
        ({"gamma": -2}, "`gamma` must be 0 or more. Received: gamma=-2"),
        ({"temperature": 0}, "`temperature` must be positive.*temperature=0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DIST(**arguments)
