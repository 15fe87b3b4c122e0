import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

import keras_mhgd
from keras_mhgd.callbacks import AttentionGraphs
from keras_mhgd.graph import GraphRecord, drawing
from tests.methods.calls import called

EDGE = "stage1 → stage2"


def mhgd(**arguments):
    return keras_mhgd.methods.MHGD(
        num_heads=2, preparation_epochs=1, **arguments
    )


def fit(distiller, images, epochs=3, **arguments):
    return distiller.fit(
        *images,
        epochs=epochs,
        batch_size=16,
        verbose=0,
        shuffle=False,
        **arguments,
    )


@pytest.mark.slow
@pytest.mark.parametrize("clipping", ["per_variable", "per_feature"])
def test_graphs_are_those_of_the_loss(distiller, images, clipping):
    """Of both networks, in inference; the loss is their divergence."""
    model = distiller(mhgd(clipping=clipping))
    fit(model, images)
    before = [variable.numpy() for variable in model.variables]
    features = model.features(tf.constant(images[0]))
    (student,), (teacher,) = model.methods[0].graphs(*features)
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert student.shape == teacher.shape == (2, 32, 32)
    np.testing.assert_allclose(tf.reduce_sum(student, -1), 1, rtol=1e-5)
    loss = tf.reduce_sum(student * tf.math.log(student / teacher))
    np.testing.assert_allclose(
        called(model.methods[0], *features)["mhgd"], loss, rtol=1e-4
    )


@pytest.mark.slow
def test_tensorboard_gets_scalars_and_pictures(distiller, images, tmp_path):
    x, y = images
    graphs = AttentionGraphs(
        tmp_path, x, y, ["bar", "<b>", "$c$"], freq=2, file=tmp_path / "a.npz"
    )
    model = distiller(mhgd())
    fit(model, images, callbacks=[graphs])
    record = GraphRecord.load(tmp_path / "a.npz")
    # Before, after the second, and after the last of three epochs.
    np.testing.assert_array_equal(record.epochs, [0, 2, 3])
    assert record.edges == [EDGE]
    assert [*record.classes] == ["bar"] * 11 + ["<b>"] * 11 + ["$c$"] * 10
    assert record.bounds == [11, 22]
    order = np.argsort(y, kind="stable")
    (student,), (teacher,) = model.methods[0].graphs(
        *model.features(tf.constant(x[order]))
    )
    np.testing.assert_allclose(record.student[0], student, rtol=1e-3)
    np.testing.assert_allclose(record.teacher[0], teacher, rtol=1e-3)
    assert np.abs(record.before - record.student).max() > 1e-3
    difference = np.abs(student - teacher).mean() * 32
    divergence = (student * np.log(student / teacher)).numpy().sum() / 64
    assert record.differences[-1, 0] == pytest.approx(difference, rel=1e-4)
    assert record.divergences[-1, 0] == pytest.approx(divergence, rel=1e-3)

    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    for kind, expected in (
        ("difference", record.differences),
        ("divergence", record.divergences),
    ):
        found = events.Tensors(f"attention_{kind}/{EDGE}")
        assert [each.step for each in found] == [0, 2, 3]
        values = [tf.make_ndarray(each.tensor_proto) for each in found]
        np.testing.assert_allclose(values, expected[:, 0], rtol=1e-6)
    for name in ("attention", f"heads/{EDGE}", "attended images"):
        found = events.Tensors(name)
        assert [each.step for each in found] == [0, 2, 3]
        *_, png = tf.make_ndarray(found[-1].tensor_proto)
        picture = tf.io.decode_png(png).numpy()
        assert picture.shape[0] > 150 and picture.std() > 20


@pytest.mark.slow
def test_the_training_stays_the_same(distiller, images, tmp_path):
    found = []
    for callbacks in ([], [AttentionGraphs(tmp_path, *images)]):
        keras.utils.set_random_seed(1)
        model = distiller(mhgd())
        fit(model, images, epochs=2, callbacks=callbacks)
        found.append(model.student.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_among_several_methods(distiller, images, tmp_path):
    file = tmp_path / "a.npz"
    model = distiller([keras_mhgd.methods.get("soft_logits"), mhgd()])
    graphs = AttentionGraphs(tmp_path, *images, file=file)
    fit(model, images, epochs=1, callbacks=[graphs])
    assert [*GraphRecord.load(file).epochs] == [0, 1]


def test_what_it_can_not_watch_is_told(distiller, images, tmp_path):
    x, y = images
    with pytest.raises(ValueError, match="methods .'SoftLogits'.*Leave"):
        fit(
            distiller(keras_mhgd.methods.get("soft_logits")),
            images,
            callbacks=[AttentionGraphs(tmp_path, x, y)],
        )
    with pytest.raises(ValueError, match="two classes or more.*1 classes"):
        AttentionGraphs(tmp_path, x, np.zeros_like(y))
    with pytest.raises(ValueError, match=r"labels of shape \(3,\) with 3"):
        AttentionGraphs(tmp_path, x, y[:3])
    with pytest.raises(ValueError, match="`freq` must be 1 or more. Rec.*0"):
        AttentionGraphs(tmp_path, x, y, freq=0)


@pytest.fixture
def record():
    """A teacher that attends to class 1 of 3, a student that is indifferent."""
    teacher = np.full((1, 4, 6, 6), 1 / 12)
    teacher[..., 2:4] = 1 / 3
    student = np.full((1, 4, 6, 6), 1 / 6)
    student[..., 5] += 0.01
    return GraphRecord(
        edges=np.array([EDGE]),
        classes=np.array(["0", "0", "1", "1", "2", "2"]),
        images=np.zeros((6, 8, 8, 3), np.uint8),
        teacher=teacher,
        before=student,
        student=student,
        epochs=np.array([0]),
        differences=np.zeros((1, 1)),
        divergences=np.zeros((1, 1)),
    )


def test_what_is_shown_of_a_record(record):
    np.testing.assert_allclose(
        record.relative("teacher", 0)[4], [0.5, 0.5, 2, 2, 0.5, 0.5], rtol=1e-6
    )
    assert set(record.attended("teacher", 0, 0, 2)) == {2, 3}
    assert record.attended("student", 0, 0, 1) == [5]
    assert record.samples(2) == [0, 2]
    assert record.samples(9) == [0, 2, 4]
    shown = drawing.panels(record, 0, scale=4)
    # Between the lines at the bounds of classes: dark, light, dark.
    row = shown["teacher"][1, [1, 10, 18]].sum(axis=-1).astype(int)
    assert row[0] == row[2] < 20 and row[1] > 600
    # Less than the teacher: blue. More: red.
    red, _, blue = shown["difference"][1, 10].astype(int)
    assert blue > red
    red, _, blue = shown["difference"][1, 1].astype(int)
    assert red > blue


def test_colour_pictures_are_drawn(record):
    for picture in (
        drawing.draw_edges(record),
        drawing.draw_heads(record, 0),
        drawing.draw_attended(record, 0, record.samples(3)),
    ):
        assert picture.dtype == np.uint8 and picture.shape[2] == 3
        assert (picture == 255).mean() > 0.2  # the board is white
