import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.features.compression import (
    fixed_signs,
    student_vector,
    teacher_vector,
    teacher_vectors,
)


def test_agrees_with_the_reference(golden, close):
    reference = golden("tf_mhgd")
    for i in range(3):
        expected = reference[f"mid/V_T{i}"][:, :, 0]
        found = teacher_vector(reference[f"in/teacher{i}"]).numpy()
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


def test_fixed_signs_leave_no_negative_sum():
    maps = tf.random.stateless_normal((8, 4, 4, 6), (0, 1))
    solvers = teacher_vector(maps)
    assert np.sum(solvers, axis=1).min() < 0
    (fixed,) = fixed_signs([solvers])
    assert np.sum(fixed, axis=1).min() >= 0
    np.testing.assert_array_equal(np.abs(fixed), np.abs(solvers))
    kept = Features(None, [maps], vectors=[fixed])
    assert teacher_vectors(kept)[0] is fixed
