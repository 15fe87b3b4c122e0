"""Methods that initialise the student, and weights that change."""

import keras
import numpy as np
import pytest

import keras_mhgd
from benchmarks.correctness.situations import SITUATIONS
from keras_mhgd import methods


@pytest.mark.parametrize("name", ["fitnet", "fsp", "activation_boundaries"])
def test_initialises_then_trains_by_the_task_alone(
    name, distiller, images, capsys
):
    kind = type(methods.get(name))
    method = kind(preparation_epochs=2, preparation_learning_rate=0.001)
    model = distiller(method)
    before = model.student.get_weights()
    model.prepare(*images, verbose=2)
    assert "Epoch 2/2" in capsys.readouterr().out
    moved = {
        weight.path
        for weight, old in zip(model.student.weights, before, strict=True)
        if not np.array_equal(weight, old)
    }
    head = {each.path for each in model.student.get_layer("logits").weights}
    assert moved == {each.path for each in model.student.weights} - head
    assert method.preparation.done

    calls = []
    call = model.teacher.layers[-1].call
    model.teacher.layers[-1].call = lambda *a, **k: (
        calls.append(1) or call(*a, **k)
    )
    history = model.fit(*images, verbose=0).history
    assert not calls
    assert name not in history
    np.testing.assert_allclose(history["loss"], history["task_loss"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fitnet", "fsp"])
def test_initialisation_lowers_the_terms(name, distiller, images):
    kind = type(methods.get(name))
    student = distiller(name).student
    found = []
    for epochs in (1, 20):
        copy = keras.models.clone_model(student)
        copy.set_weights(student.get_weights())
        method = kind(
            preparation_epochs=epochs,
            preparation_learning_rate=1e-3,
            weight=1.0,
        )
        keras.utils.set_random_seed(3)
        model = keras_mhgd.Distiller(copy, distiller(name).teacher, method)
        model.prepare(*images, verbose=0, shuffle=False)
        features = model.features(images[0])
        found.append(sum(method.call(*features, None).values()))
    assert found[1] < 0.9 * found[0]


def test_initialises_beside_another_method(distiller, images, tmp_path):
    """As in the paper of FitNets: hints first, then soft logits."""
    model = distiller(
        [methods.FitNet(preparation_epochs=1), methods.SoftLogits()]
    )
    history = model.fit(*images, verbose=0).history
    assert "soft_logits" in history and "fitnet" not in history
    model.save(tmp_path / "run.keras")
    assert keras.saving.load_model(tmp_path / "run.keras").prepared


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preparation_epochs": -1}, "`preparation_epochs` must be 0 or more"),
        (
            {"preparation_learning_rate": 0},
            "`preparation_learning_rate` must be positive",
        ),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        methods.FitNet(**arguments)


def test_a_callback_changes_the_weight(distiller, images):
    """Without a new trace; zero from the second epoch on."""
    model = distiller(methods.SoftLogits(weight=0.7))
    change = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: model.methods[0].weight.assign(
            0.7 if epoch == 0 else 0.0
        )
    )
    history = model.fit(*images, epochs=3, callbacks=[change], verbose=0)
    terms = history.history["soft_logits"]
    assert terms[0] > 0 and terms[1:] == [0.0, 0.0]


def test_the_weight_is_saved_and_in_the_configuration(
    distiller, images, tmp_path
):
    model = distiller(methods.SoftLogits(weight=0.7))
    assert model.methods[0].get_config()["weight"] == 0.7
    model.methods[0].weight.assign(0.3)
    assert model.methods[0].get_config()["weight"] == 0.3
    model.fit(*images, verbose=0)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    np.testing.assert_allclose(loaded.methods[0].weight, 0.3)


@pytest.mark.parametrize("name", ["fitnet", "fsp", "activation_boundaries"])
def test_initialises_a_network_of_several_outputs(name):
    situation = SITUATIONS["two_heads"]
    method = type(methods.get(name))(preparation_epochs=1)
    model = keras_mhgd.Distiller(
        situation.student(), situation.teacher(), method
    )
    model.compile(keras.optimizers.SGD(0.001), **situation.task)
    history = model.fit(situation.x, situation.y, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_networks_of_two_methods_have_two_names(distiller):
    model = distiller([methods.MHGD(clipping=None), "mhgd"])
    assert list(model.prepared_networks) == ["mhan", "mhan_2"]
