import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.fsp import fsp_loss, fsp_matrix

SOURCES = {
    "tf_fsp": ({}, 0.5e-3),
    "repd_fsp": ({"pooling": "average", "reduction": "mean"}, 1.0),
}


@pytest.mark.parametrize("source", SOURCES)
def test_published_numbers(source, golden, close):
    stored, (arguments, weight) = golden(source), SOURCES[source]
    student = [tf.constant(stored[f"in/student{i}"]) for i in range(3)]
    teacher = [stored[f"in/teacher{i}"] for i in range(3)]
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = weight * fsp_loss(student, teacher, **arguments)
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    for point, gradient in enumerate(tape.gradient(loss, student)):
        close(gradient, stored[f"grad/student{point}"], 1e-3)
    for edge in range(2 if "loss0" in stored else 0):
        points = slice(edge, edge + 2)
        found = fsp_loss(student[points], teacher[points], **arguments)
        assert float(found) == pytest.approx(stored[f"loss{edge}"], rel=1e-4)


@pytest.mark.parametrize(
    ("pooling", "expected"), [("max", [[1.5]]), ("average", [[0.5]])]
)
def test_hand_value(pooling, expected):
    """Positions (0, 2, 0, 1) become (2, 1) or (1, 1/2), times (0, 3) or so.

    max: (2 x 0 + 1 x 3) / 2; average: (1 x (-1/2) + 1/2 x 3) / 2 = 1/2.
    """
    front = np.reshape([0.0, 2.0, 0.0, 1.0], (1, 4, 1))
    first = 0.0 if pooling == "max" else -0.5
    back = np.reshape([first, 3.0], (1, 2, 1))
    np.testing.assert_allclose(fsp_matrix(front, back, pooling)[0], expected)


@pytest.mark.parametrize("name", ["pooling", "reduction"])
def test_unknown_names(name):
    maps = [tf.zeros((1, 2, 2, 1))] * 2
    with pytest.raises(ValueError, match=f"`{name}` must be one of .*='min'"):
        fsp_loss(maps, maps, **{name: "min"})
