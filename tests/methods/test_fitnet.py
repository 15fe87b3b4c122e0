import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.methods.fitnet import FitNet


def features(stored, of, points):
    maps = [tf.constant(stored[f"in/{of}{i}"]) for i in range(points)]
    return Features(None, maps)


def built(method, student, teacher):
    method.build(
        *(
            Features(None, [(None, *each.shape[1:]) for each in of.maps])
            for of in (student, teacher)
        )
    )
    return method


def run(method, student, teacher):
    weights = [weight.value for weight in method.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(student.maps)
        loss = method.call(student, teacher, None)["fitnet"]
    return loss, *tape.gradient(loss, [student.maps, weights])


@pytest.mark.parametrize("project", ["student", "teacher"])
def test_published_numbers_at_equal_widths(project, golden, close):
    stored = golden("repd_ab_hint")
    student, teacher = (
        features(stored, of, 3) for of in ("student", "teacher")
    )
    method = built(FitNet(project), student, teacher)
    assert method.trainable_variables == []
    loss, found, _ = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["hint/loss"]), rel=1e-4)
    for point, gradient in enumerate(found):
        close(gradient, stored[f"hint/grad/student{point}"], 1e-3)


def test_published_numbers_with_the_teacher_projected(golden, close):
    stored = golden("tf_fitnet")
    student, teacher = (
        features(stored, of, 2) for of in ("student", "teacher")
    )
    method = built(FitNet("teacher"), student, teacher)
    (kernel,) = method.trainable_variables
    kernel.assign(stored["var/Guided/Map/fc/weights"])
    loss, found, (of_kernel,) = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    for point, gradient in enumerate(found):
        close(gradient, stored[f"grad/student{point}"], 1e-3)
    close(of_kernel, stored["grad/var/Guided/Map/fc/weights"], 1e-3)


def test_student_is_projected_to_the_teachers_width(golden, close):
    """Roles exchanged, the same numbers: the squares are symmetric."""
    stored = golden("tf_fitnet")
    teacher, student = (
        features(stored, of, 2) for of in ("student", "teacher")
    )
    method = built(FitNet(), student, teacher)
    (kernel,) = method.trainable_variables
    assert kernel.shape == (40, 24)
    kernel.assign(stored["var/Guided/Map/fc/weights"])
    loss, found, (of_kernel,) = run(method, student, teacher)
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    close(of_kernel, stored["grad/var/Guided/Map/fc/weights"], 1e-3)
    difference = student.maps[1] @ kernel.value - teacher.maps[1]
    expected = 2 * difference @ tf.transpose(kernel.value)
    close(found[1], expected / tf.size(difference, tf.float32), 1e-5)


@pytest.mark.parametrize("project", ["student", "teacher"])
def test_sizes_and_widths_that_differ(project):
    """A vector meets a map's mean; a constant map keeps its value in a pool.

    Map of ones with 2 channels, kernel of ones: 2 in each channel; against 5:
    (2 - 5)^2 = 9 at both points. The teacher projected: 3 channels of 5 make
    15, against 1: 196.
    """
    student = Features(
        None, [tf.ones((2, 7, 5, 2), "float16"), tf.ones((2, 4, 4, 2))]
    )
    teacher = Features(None, [tf.fill((2, 3, 6, 3), 5.0), tf.fill((2, 3), 5.0)])
    method = built(FitNet(project), student, teacher)
    for kernel in method.trainable_variables:
        kernel.assign(np.ones(kernel.shape))
    loss, *_ = run(method, student, teacher)
    expected = 18.0 if project == "student" else 392.0
    assert float(loss) == pytest.approx(expected, rel=1e-5)
