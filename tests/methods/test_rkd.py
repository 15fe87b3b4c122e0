import types

import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.rkd import (
    RKD,
    relational_angle_loss,
    relational_distance_loss,
)


@pytest.mark.parametrize(
    ("name", "key", "weights"),
    [
        ("repd_rkd", "", (25, 50)),
        ("repd_rkd", "distance_only/", (1, 0)),
        ("repd_rkd", "angle_only/", (0, 1)),
        ("tf_rkd", "default/", (100, 200)),
        ("tf_rkd", "l25_50/", (25, 50)),
        ("tf_rkd", "distance_only/", (1, 0)),
        ("tf_rkd", "angle_only/", (0, 1)),
    ],
)
def test_published_numbers(golden, close, name, key, weights):
    data = golden(name)
    method = RKD(*weights, normalize=name == "tf_rkd")
    student, teacher = (
        types.SimpleNamespace(embedding=tf.constant(data[f"in/{which}"]))
        for which in ("student", "teacher")
    )
    with tf.GradientTape() as tape:
        tape.watch(student.embedding)
        loss = sum(method.call(student, teacher, None).values())
    # The distances of tf_rkd are off by up to 5e-5 themselves: round-off of
    # that code's products of rows, in float32.
    tolerance = 2e-4 if name == "tf_rkd" else 1e-4
    np.testing.assert_allclose(loss, data[f"{key}loss"], rtol=tolerance)
    gradient = tape.gradient(loss, student.embedding)
    close(gradient, data[f"{key}grad/student"], 1e-3)


def test_hand_value_of_distances():
    """Points 0, 1, 3 of the student and 0, 1, 2 of the teacher.

    Distances 1, 2, 3 over their mean 2: 1/2, 1, 3/2; 1, 1, 2 over 4/3: 3/4,
    3/4, 3/2. Two pairs, in both orders, differ by 1/4: 4 (1/4)^2 / 2 / 9.
    The angles on a line are equal.
    """
    student, teacher = [[0.0], [1.0], [3.0]], [[0.0], [1.0], [2.0]]
    found = relational_distance_loss(student, teacher)
    assert float(found) == pytest.approx(1 / 72, rel=1e-6)
    assert float(relational_angle_loss(student, teacher)) == 0


def test_hand_value_of_angles():
    """A right isosceles triangle of the student, a line of the teacher.

    Cosines 0, r, r with r = 1 / sqrt 2, and 1, -1, 1. Huber: 1/2, r + 1/2,
    (1 - r)^2 / 2, which sum up to 7/4; each twice, over 27.
    """
    student = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    teacher = [[0.0], [1.0], [2.0]]
    found = relational_angle_loss(student, teacher)
    assert float(found) == pytest.approx(3.5 / 27, rel=1e-6)


def test_scale_shift_and_rotation_of_the_batch_do_nothing():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(5, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    student = 4 * teacher @ rotation + [1, 2, 3]
    for loss in (relational_distance_loss, relational_angle_loss):
        assert float(loss(student, teacher)) == pytest.approx(0, abs=1e-12)
        assert float(loss(student, teacher, normalize=True)) > 1e-3


@pytest.mark.parametrize("name", ["distance_weight", "angle_weight"])
def test_wrong_arguments(name):
    message = f"`{name}` must be 0 or more. Received: {name}=-1.0"
    with pytest.raises(ValueError, match=message):
        RKD(**{name: -1.0})
