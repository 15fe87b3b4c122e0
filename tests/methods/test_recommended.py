"""The method for those who have none in mind."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import gradients, methods
from keras_mhgd.features import Features
from keras_mhgd.methods import DIST, MHGD, CrossMHGD, SoftLogits


@pytest.fixture
def recommended():
    """With a short preparation."""
    _, *others = methods.recommended()
    return [CrossMHGD(preparation_epochs=1), *others]


def test_what_it_is():
    made = methods.parts("recommended")
    for each, kind in zip(made, [CrossMHGD, SoftLogits, DIST], strict=True):
        assert type(each) is kind
        expected = kind().get_config() | {"name": each.name}
        assert each.get_config() == expected
    # What cross attention doesn't say is as published.
    default, ours = (
        config | config.pop("variant")
        for config in (MHGD().get_config(), CrossMHGD().get_config())
    )
    changed = {
        name: value
        for name, value in ours.items()
        if value != default[name] and name != "name"
    }
    assert changed == {
        "senses_logits": True,
        "fix_signs": True,
        "scale_logits": True,
        "clipping": "per_feature",
        "clip_bound": 0.3,
    }
    assert isinstance(made[0].gradient_rule, gradients.PerFeatureClipping)
    assert [methods.name_of(each) for each in made] == [
        "mhgd_cross",
        "soft_logits",
        "dist",
    ]
    text = "one of the methods that have a name.*Received: .*Make it by `get`"
    with pytest.raises(ValueError, match=text):
        methods.name_of(methods.Method())


def test_replicas_join_no_maps_that_a_method_does_not_read():
    logits, maps = tf.zeros((2, 3)), [tf.zeros((2, 4, 4, 1))]
    pair = [
        Features(logits, maps, logits, forks=maps, maps_before_activation=maps),
        Features(
            logits, maps, logits, vectors=maps, maps_before_activation=maps
        ),
    ]
    assert methods.FSP().reduce(*pair) == (Features(None, maps),) * 2
    assert DIST().reduce(*pair) == (Features(None, [], logits),) * 2


@pytest.mark.slow
def test_trains_saves_and_goes_on(distiller, images, recommended, tmp_path):
    model = distiller(recommended)
    assert model.sensing_points == (
        ("stage1", "stage1"),
        ("stage2", "stage2"),
        ("logits", "logits"),
    )
    history = model.fit(*images, epochs=3, verbose=0).history
    assert {"task_loss", *model.terms} < history.keys()
    # Not soft_logits: this teacher is unsure, and DIST doesn't ask how much.
    for term in ("mhgd_cross", "dist_inter", "dist_intra"):
        assert history[term][-1] < history[term][0]
    model.save(tmp_path / "run.keras")
    again = keras.saving.load_model(tmp_path / "run.keras")
    assert again.sensing_points == model.sensing_points
    x, y = images
    for each in (model, again):
        each.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_first_point_of_the_student_is_left_to_the_task(
    small_net, images, recommended, task
):
    """Its channels differ, and yet it needs no projection."""
    student = small_net("student", widths=(5, 8))
    distiller = keras_mhgd.Distiller(student, small_net("t"), recommended)
    distiller.compile(**task())
    distiller.fit(*images, epochs=1, verbose=0)
    mhgd, *_ = recommended
    assert not mhgd.trainable_variables
    narrow = small_net("student", widths=(6, 5))
    model = keras_mhgd.Distiller(narrow, small_net("t"), "recommended")
    mhgd, *_ = model.methods
    assert [each.shape for each in mhgd.trainable_variables] == [(5, 8)]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["layer", "fused"])
def test_networks_that_end_in_softmax(small_net, images, recommended, ending):
    def network(name):
        net = small_net(name)
        if ending == "layer":
            x = keras.layers.Softmax(name="softmax")(net.output)
        else:
            dense = keras.layers.Dense(3, "softmax", name="probabilities")
            x = dense(net.get_layer("logits").input)
        return keras.Model(net.inputs, x, name=name)

    model = keras_mhgd.Distiller(network("s"), network("t"), recommended)
    last = "logits" if ending == "layer" else "probabilities"
    assert model.sensing_points[-1] == (last, last)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    history = model.fit(*images, verbose=0).history
    found = history["mhgd_cross"]
    assert np.isfinite(found).all() and found[0] > 0
