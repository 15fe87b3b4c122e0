import pytest
import tensorflow as tf

from keras_mhgd.linalg.precision import as_float

DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_float64_stays_and_all_else_is_float32(dtype):
    found = as_float(tf.zeros(2, dtype)).dtype
    assert found == (tf.float64 if dtype == "float64" else tf.float32)
    assert as_float([1, 2]).dtype == tf.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_float64_where_one_of_them_is(dtype):
    x, other = tf.zeros(2, dtype), tf.zeros(3, tf.float64)
    assert as_float(x, other).dtype == as_float(other, x).dtype == tf.float64
