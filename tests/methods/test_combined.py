import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import gradients, methods
from keras_mhgd.features import Features
from keras_mhgd.methods import MHGD, Combined, Method
from training import options


@keras.saving.register_keras_serializable(package="tests")
class Pull(Method):
    """Pulls the logits to the teacher's: the mean squared difference."""

    terms = ("pull",)
    needs = ("logits",)

    def call(self, student, teacher, labels):
        difference = student.logits - tf.stop_gradient(teacher.logits)
        return {"pull": self.weight * tf.reduce_mean(difference**2)}


@pytest.fixture
def mhgd():
    def make(**arguments):
        return MHGD(**{"num_heads": 2, "preparation_epochs": 1, **arguments})

    return make


def test_trains_by_both(distiller, images, mhgd):
    model = distiller([mhgd(), Pull(weight=3.0)])
    history = model.fit(*images, epochs=2, verbose=0).history
    assert {"loss", "task_loss", "mhgd", "pull"} <= history.keys()
    assert model.method.prepared
    assert list(model.method.artifacts()) == ["mhan"]
    total = sum(history[name][1] for name in ("task_loss", "mhgd", "pull"))
    assert history["loss"][1] == pytest.approx(total, rel=1e-5)


def test_a_limited_gradient_is_limited_against_all_others(
    distiller, small_net, images, mhgd, monkeypatch
):
    """With a task of weight 0, only the pull allows any transfer."""
    seen = []
    rule = gradients.PerVariableClipping.factors

    def factors(self, task_norms, transfer_norms, epoch):
        seen.append(float(tf.reduce_max(task_norms)))
        return rule(self, task_norms, transfer_norms, epoch)

    monkeypatch.setattr(gradients.PerVariableClipping, "factors", factors)
    x, y = images
    for weight in (0.0, 1.0):
        seen.clear()
        model = distiller([mhgd(), Pull(weight=weight)], run_eagerly=True)
        model.fit(
            x, y, sample_weight=np.zeros(len(y)), batch_size=32, verbose=0
        )
        assert seen
        assert (max(seen) > 0) == (weight > 0)


def test_saves_and_loads(distiller, images, mhgd, tmp_path):
    model = distiller([mhgd(clip_bound=0.5), Pull(weight=3.0)])
    model.fit(*images, verbose=0)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    clipped, pull = loaded.method.methods
    assert (clipped.clip_bound, pull.weight) == (0.5, 3.0)
    assert loaded.method.prepared
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_method_without_maps_needs_no_sensing_points(images, task):
    """Networks of vectors have no stages to find."""
    inputs = keras.Input((8, 8, 1))
    networks = [
        keras.Sequential(
            [inputs, keras.layers.Flatten(), keras.layers.Dense(3)], name=name
        )
        for name in ("student", "teacher")
    ]
    model = keras_mhgd.Distiller(*networks, Pull())
    model.compile(**task())
    assert model.fit(*images, verbose=0).history["pull"][0] > 0


def test_get_takes_lists_and_joined_names():
    method = methods.get(["mhgd", Pull()])
    assert [type(each) for each in method.methods] == [MHGD, Pull]
    assert method.needs == ("maps", "logits")
    with pytest.raises(ValueError, match="rk_d"):
        methods.get("mhgd+rk_d")


def test_a_combined_one_is_taken_apart():
    method = methods.get(["recommended", "rkd"])
    joined = methods.get("recommended+rkd")
    for each in (method, joined):
        names = [methods.name_of(part) for part in each.parts()]
        assert names == ["mhgd", "soft_logits", "dist", "rkd"]
        assert each.parts()[0].attention == "cross"
        assert each.limited_terms == ("mhgd",)


def test_parts_need_not_fit_each_other_yet():
    mhgd, kd_svd = methods.parts("mhgd+kd_svd")
    assert (type(mhgd), type(kd_svd)) == (MHGD, methods.KDSVD)
    (alone,) = methods.parts("rkd")
    assert type(alone) is methods.RKD
    with pytest.raises(ValueError, match="at most one"):
        methods.get("mhgd+kd_svd")
    with pytest.raises(ValueError, match="kd_sdv"):
        methods.parts("mhgd+kd_sdv")
    # So one of two that clip can be told not to.
    made = options.method("mhgd+kd_svd", ["kd_svd.clipping=null"])
    assert [part.clipping for part in made.parts()] == ["per_variable", None]
    hp = keras_tuner.HyperParameters()
    fixed = {"kd_svd": {"clipping": None, "clip_bound": 1.0}}
    made = keras_mhgd.tuning.search_method(hp, "mhgd+kd_svd", fixed)
    assert [part.clipping for part in made.parts()] == ["per_variable", None]


def test_needs_the_sensing_points_of_all():
    parts = [methods.FitNet(), methods.FSP(), Pull()]
    shapes = Features((None, 3), [(None, 4, 4, 5)], (None, 3))
    with pytest.raises(ValueError, match="give FSP 2 or .*Received: 1"):
        Combined(parts).build(shapes, shapes)
    assert not any(part.built for part in parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda: [Pull()], r"two or more methods. .*\['Pull'\]"),
        (
            lambda: [MHGD(), Clipped()],
            "at most one .*clipping=None",
        ),
    ],
)
def test_refuses_what_does_not_go_together(parts, message):
    with pytest.raises(ValueError, match=message):
        Combined(parts())


class Clipped(Pull):
    terms = ("clipped",)

    def __init__(self):
        super().__init__()
        self.gradient_rule = gradients.get("formula")
