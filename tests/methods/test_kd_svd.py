import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.features.compression import student_vector
from keras_mhgd.methods.kd_svd import (
    KDSVD,
    KDSVDF,
    singular_relation_loss,
    singular_vector_loss,
)
from tests.methods.calls import called

# Prefixes of arrays and of exact gradients, reduction, names of edges.
SOURCES = {
    "tf_kd_svd SVD": ("SVD/", "SVD/grad_true/", "sum", "edge_loss{}", 1),
    "tf_kd_svd EID": ("EID/", "EID/grad_true/", "sum", "edge_loss{}", 1),
    "repd_kdsvd": ("", "grad/", "mean", "loss{}", 0),
}


@pytest.mark.parametrize("source", SOURCES)
def test_published_numbers(source, golden, close):
    """With the stored signs of the teacher's vectors."""
    stored = golden(source.split()[0])
    prefix, exact, reduction, edge, first = SOURCES[source]
    maps = [tf.constant(stored[f"in/student{i}"]) for i in range(3)]
    teacher = [stored[f"{prefix}mid/V_T{i}"][:, :, 0] for i in range(3)]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(maps)
        student = [
            student_vector(*pair) for pair in zip(maps, teacher, strict=True)
        ]
        loss = singular_relation_loss(student, teacher, reduction=reduction)
    expected = float(stored[f"{prefix}loss"])
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    of_maps, of_vectors = tape.gradient(loss, [maps, student])
    for i in range(3):
        close(student[i], stored[f"{prefix}mid/V_S{i}"][:, :, 0], 1e-4)
        close(of_maps[i], stored[f"{exact}student{i}"], 1e-3)
        if reduction == "sum":
            close(of_vectors[i], stored[f"{prefix}grad/V_S{i}"][:, :, 0], 1e-3)
    for i in range(2):
        points = slice(i, i + 2)
        found = singular_relation_loss(
            student[points], teacher[points], reduction=reduction
        )
        expected = float(stored[prefix + edge.format(i + first)])
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_hand_value_of_relations():
    """Vectors of two samples with one component; bandwidth 8.

    First sample: student 1 then 1: R = 1; teacher 1 then -1: R = e^(-1/2).
    Second: equal. (1 - e^(-1/2))^2.
    """
    student = [[[1.0], [1.0]], [[1.0], [1.0]]]
    teacher = [[[1.0], [1.0]], [[-1.0], [1.0]]]
    expected = (1 - np.exp(-0.5)) ** 2
    for reduction, divisor in (("sum", 1), ("mean", 2)):
        found = singular_relation_loss(
            *(list(map(tf.constant, each)) for each in (student, teacher)),
            reduction=reduction,
        )
        assert float(found) == pytest.approx(expected / divisor, rel=1e-5)


def test_hand_value_of_vectors():
    """(1, 0) and (0.6, 0.8): 0.4^2 + 0.8^2 = 2 (1 - 0.6) = 0.8."""
    student = [tf.constant([[1.0, 0.0], [0.0, 1.0]])]
    teacher = [tf.constant([[0.6, 0.8], [0.0, 1.0]])]
    for reduction, expected in (("sum", 0.8), ("mean", 0.4)):
        found = singular_vector_loss(student, teacher, reduction)
        assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cls", [KDSVD, KDSVDF])
def test_scale_and_positions_of_a_map_do_nothing(cls):
    """Singular vectors ignore both; so does the sign that a map carries."""
    rng = np.random.default_rng(0)
    shapes = (3, 4, 4, 5), (3, 2, 3, 6)
    maps = [rng.normal(size=shape).astype("float32") for shape in shapes]
    changed = [-2 * each[:, ::-1] for each in maps]
    teacher = [rng.normal(size=each.shape).astype("float32") for each in maps]
    method = cls()
    method.build(*[Features(None, maps=shapes)] * 2)
    losses = [
        float(
            called(
                method, Features(None, maps=each), Features(None, maps=teacher)
            )[cls.terms[0]]
        )
        for each in (maps, changed)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0] > 0.01


@pytest.mark.parametrize("loss", [singular_relation_loss, singular_vector_loss])
def test_unknown_reduction(loss):
    vectors = [tf.ones((1, 1))] * 2
    with pytest.raises(ValueError, match="`reduction` must be one of .*='max'"):
        loss(vectors, vectors, reduction="max")
