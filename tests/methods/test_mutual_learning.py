"""Two networks that train each other."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from keras_mhgd.methods.mutual_learning import mutual_losses


def test_the_symmetric_loss_agrees_with_the_reference(golden, close):
    found = golden("tf_dml")
    student, teacher = (
        tf.constant(found[f"in/{name}"]) for name in ("student", "teacher")
    )
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = tf.add_n(mutual_losses(student, teacher, symmetric=True))
    np.testing.assert_allclose(loss, found["loss"], rtol=1e-4)
    gradients = tape.gradient(loss, [student, teacher])
    close(gradients[0], found["grad/student"], 1e-3)
    close(gradients[1], found["grad/teacher"], 1e-3)


def test_by_hand():
    """p_S = (3, 1) / 4 and p_T = (1, 1) / 2: KL(p_T || p_S) = ln(2 / sqrt 3),
    KL(p_S || p_T) = 3/4 ln 3 - ln 2."""
    student, teacher = tf.constant([[np.log(3.0), 0.0]]), tf.zeros((1, 2))
    ours, theirs = mutual_losses(student, teacher)
    np.testing.assert_allclose(ours, np.log(2 / np.sqrt(3)), rtol=1e-5)
    np.testing.assert_allclose(theirs, 0.75 * np.log(3) - np.log(2), rtol=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_each_network_learns_from(symmetric):
    student, teacher = tf.random.normal((2, 5, 3))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([student, teacher])
        ours, theirs = mutual_losses(student, teacher, symmetric=symmetric)
    assert tape.gradient(ours, student) is not None
    assert (tape.gradient(ours, teacher) is not None) == symmetric
    assert tape.gradient(theirs, student) is None
    assert (tape.gradient(theirs, teacher) is None) == symmetric


@pytest.mark.slow
def test_trains_beside_methods_on_maps(distiller, images):
    """These read the teacher's vectors, whose network learns meanwhile."""
    mhgd = methods.MHGD(num_heads=2, preparation_epochs=1)
    model = distiller([mhgd, "mutual_learning"])
    history = model.fit(*images, epochs=2, verbose=0).history
    assert {"mhgd", "mutual_learning"} < history.keys()
    assert all(np.isfinite(each).all() for each in history.values())


@pytest.mark.slow
def test_both_networks_train_alone_where_the_weight_is_zero(
    small_net, task, images
):
    """Then each ends with the weights of plain Keras training."""
    student, teacher = small_net("student"), small_net("teacher")
    plain = [keras.models.clone_model(each) for each in (student, teacher)]
    for network, copy in zip((student, teacher), plain, strict=True):
        copy.set_weights(network.get_weights())
    model = keras_mhgd.Distiller(
        student, teacher, methods.MutualLearning(weight=0.0)
    )
    model.compile(**task())
    history = model.fit(*images, epochs=2, shuffle=False, verbose=0).history
    for copy, network in zip(plain, (student, teacher), strict=True):
        copy.compile(**task())
        copy.fit(*images, epochs=2, shuffle=False, verbose=0)
        for a, b in zip(copy.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert {"mutual_learning", "mutual_learning_of_teacher"} <= history.keys()


@pytest.mark.slow
def test_the_networks_agree_more(small_net, task, images):
    """After twenty steps, by the divergence itself."""
    found = []
    for weight in (1e-3, 3.0):
        keras.utils.set_random_seed(0)
        model = keras_mhgd.Distiller(
            small_net("student"),
            small_net("teacher"),
            methods.MutualLearning(weight=weight),
        )
        model.compile(**task())
        history = model.fit(*images, epochs=20, verbose=0).history
        found.append(history["mutual_learning"][-1] / weight)
    assert found[1] < 0.5 * found[0]


@pytest.mark.slow
def test_the_teachers_training_resumes(small_net, task, images, tmp_path):
    model = keras_mhgd.Distiller(
        small_net("student"), small_net("teacher"), "mutual_learning"
    )
    model.compile(**task())
    model.fit(*images, verbose=0)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    for each in (model, loaded):
        each.fit(*images, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    weights = {id(each) for each in model.teacher.variables}
    assert weights <= {id(each) for each in model.resumable_variables}


def test_refuses_a_frozen_teacher_and_a_cache(small_net, task):
    teacher = small_net("teacher")
    teacher.trainable = False
    message = "`teacher` must be trainable, since MutualLearning.*'teacher'"
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(small_net(), teacher, "mutual_learning")
    teacher.trainable = True
    model = keras_mhgd.Distiller(small_net(), teacher, "mutual_learning")
    with pytest.raises(ValueError, match="must have a frozen teacher"):
        keras_mhgd.TeacherCache(model, None, batch_size=4, views=1)
