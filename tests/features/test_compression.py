import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.features.compression import (
    student_vector,
    teacher_vector,
    teacher_vectors,
    varied_signs,
)


def test_agrees_with_the_reference(golden, close):
    reference = golden("tf_mhgd")
    for i in range(3):
        expected = reference[f"mid/V_T{i}"][:, :, 0]
        found = teacher_vector(reference[f"in/teacher{i}"]).numpy()
        assert (found.sum(axis=1) >= 0).all()
        signs = np.sign((found * expected).sum(1, keepdims=True))
        close(found * signs, expected, 1e-5)
        # With the stored sign of the teacher's vector the student's follows.
        aligned = student_vector(reference[f"in/student{i}"], expected)
        close(aligned, reference[f"mid/V_S{i}"][:, :, 0], 1e-5)


@pytest.mark.parametrize(
    "shape", [(5, 2, 4, 4, 6), (5, 4, 4, 6), (5, 9, 6), (5, 6)]
)
def test_maps_sequences_and_vectors_compress(shape):
    rng = np.random.default_rng(0)
    teacher = teacher_vector(rng.normal(size=shape).astype("float32"))
    student = student_vector(rng.normal(size=shape).astype("float32"), teacher)
    for found in (teacher, student):
        assert found.shape == (5, 6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(2, 4, 4, 6), (2, 6)])
def test_features_of_zero_have_the_vector_zero(shape, dtype):
    zero = tf.zeros(shape, dtype)
    teacher = teacher_vector(zero)
    for found in (teacher, student_vector(zero, teacher)):
        np.testing.assert_array_equal(found, np.zeros((2, 6)))
        assert found.dtype == (tf.float64 if dtype == "float64" else tf.float32)


def test_signs_vary_between_samples_and_with_nothing_else():
    """All components of these vectors are positive."""
    rng = np.random.default_rng(0)
    maps = tf.constant(rng.random((64, 4, 4, 6)), tf.float32)
    vector = teacher_vector(maps)
    assert np.min(vector) > 0
    varied, same = varied_signs([vector, vector], [maps.shape, vector.shape])
    assert same is vector
    negative = np.sum(varied, axis=1) < 0
    assert 0 < negative.sum() < 64
    np.testing.assert_array_equal(np.abs(varied), vector)
    again = teacher_vector(tf.pad(maps, [[0, 0], [0, 3], [0, 0], [0, 0]]))
    (padded,) = varied_signs([again], [maps.shape])
    np.testing.assert_array_equal(np.sum(padded, axis=1) < 0, negative)
    (exact,) = varied_signs([tf.cast(vector, tf.float64)], [maps.shape])
    assert exact.dtype == "float64"
    np.testing.assert_array_equal(np.sum(exact, axis=1) < 0, negative)


def test_vectors_that_are_kept_are_taken():
    kept = Features(None, [], vectors=[tf.ones((2, 3))])
    assert teacher_vectors(kept) is kept.vectors
