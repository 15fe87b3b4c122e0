"""Losses of `keras.distillation`, passed as they are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import methods

KD = keras.distillation.LogitsDistillation
FEATURE = keras.distillation.FeatureDistillation


def kd(temperature=3.0):
    return KD(temperature, keras.losses.KLDivergence())


def one_step_terms(model, images):
    return model.train_on_batch(*images, return_dict=True)


@pytest.mark.slow
def test_logits_distillation_is_soft_logits(distiller, images, small_net):
    """T^2 KL(p_T || p_S), by both; also of a network that ends in softmax."""
    networks = small_net("student"), small_net("teacher")
    ends = [
        keras.Model(each.inputs, keras.layers.Softmax()(each.outputs[0]))
        for each in networks
    ]
    found = []
    for method in (kd(), methods.SoftLogits(temperature=3.0, weight=1.0)):
        copies = [keras.models.clone_model(each) for each in ends]
        for copy, each in zip(copies, ends, strict=True):
            copy.set_weights(each.get_weights())
        model = distiller(
            method,
            *copies,
            loss=keras.losses.SparseCategoricalCrossentropy(),
        )
        found.append(one_step_terms(model, images)[model.terms[0]])
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_feature_distillation_reads_its_own_layers(distiller, images):
    method = FEATURE(
        "mse", teacher_layer_name="stage1", student_layer_name="stage1"
    )
    model = distiller(method)
    assert model.sensing_points == ()
    x, _ = images
    maps = [
        keras.Model(each.input, each.get_layer("stage1").output)(
            x, training=training
        )
        for each, training in ((model.student, True), (model.teacher, False))
    ]
    expected = tf.reduce_mean(tf.math.squared_difference(*maps))
    terms = one_step_terms(model, images)
    np.testing.assert_allclose(
        terms["feature_distillation_stage1"], expected, rtol=1e-4
    )


def test_feature_distillation_of_the_outputs(distiller, images):
    model = distiller(FEATURE("mae"))
    x, _ = images
    expected = tf.reduce_mean(
        tf.abs(model.student(x, training=True) - model.teacher(x))
    )
    terms = one_step_terms(model, images)
    np.testing.assert_allclose(
        terms["feature_distillation"], expected, rtol=1e-3
    )


class Distance(keras.distillation.DistillationLoss):
    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return tf.reduce_mean(tf.abs(teacher_outputs - student_outputs))


@pytest.mark.slow
def test_a_loss_of_ones_own(distiller, images):
    terms = one_step_terms(distiller(Distance()), images)
    assert terms["distance"] > 0


@pytest.mark.slow
def test_beside_other_methods(distiller, images, tmp_path):
    """MHGD's graph is over its own sensing points alone."""
    method = [
        methods.MHGD(num_heads=2, preparation_epochs=1),
        kd(),
        FEATURE(
            "mse", teacher_layer_name="stage1", student_layer_name="stage1"
        ),
        FEATURE(
            "mse", teacher_layer_name="stage2", student_layer_name="stage2"
        ),
    ]
    model = distiller(method)
    history = model.fit(*images, verbose=0).history
    assert {
        "mhgd",
        "logits_distillation",
        "feature_distillation_stage1",
        "feature_distillation_stage2",
    } <= history.keys()
    assert len(model.sensing_points) == 2
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert loaded.terms == model.terms
    assert loaded.methods[1].loss.temperature == 3.0


def test_warns_of_keras_default():
    with pytest.warns(UserWarning, match="raw logits without a softmax.*Pass"):
        methods.get(KD())


def test_refuses_other_losses():
    with pytest.raises(TypeError, match="loss of keras.distillation. Received"):
        methods.KerasLoss(keras.losses.KLDivergence())


def test_refuses_a_layer_that_is_not_there(distiller):
    method = FEATURE(teacher_layer_name="stage2", student_layer_name="stag2")
    with pytest.raises(ValueError, match="'stag2'. Near names: .'stage2'"):
        distiller(method)
