import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import gradients, methods
from keras_mhgd.methods import MHGD, Method, Needs
from training import options


@keras.saving.register_keras_serializable(package="tests")
class Pull(Method):
    """Pulls the logits to the teacher's: the mean squared difference."""

    terms = ("pull",)
    needs = Needs(logits=True)

    def call(self, student, teacher, labels):
        difference = student.logits - tf.stop_gradient(teacher.logits)
        return {"pull": self.weight * tf.reduce_mean(difference**2)}


@pytest.fixture
def mhgd():
    def make(**arguments):
        return MHGD(**{"num_heads": 2, "preparation_epochs": 1, **arguments})

    return make


@pytest.mark.slow
def test_trains_by_both(distiller, images, mhgd):
    model = distiller([mhgd(), Pull(weight=3.0)])
    history = model.fit(*images, epochs=2, verbose=0).history
    assert {"loss", "task_loss", "mhgd", "pull"} <= history.keys()
    assert model.prepared
    assert list(model.prepared_networks) == ["mhan"]
    total = sum(history[name][1] for name in ("task_loss", "mhgd", "pull"))
    assert history["loss"][1] == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
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


@pytest.mark.slow
def test_saves_and_loads(distiller, images, mhgd, tmp_path):
    model = distiller([mhgd(clip_bound=0.5), Pull(weight=3.0)])
    model.fit(*images, verbose=0)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    clipped, pull = loaded.methods
    assert (clipped.clip_bound, pull.weight) == (0.5, 3.0)
    assert loaded.prepared
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


def test_parts_takes_lists_and_joined_names():
    pull = Pull()
    made = methods.parts(["mhgd", pull])
    assert type(made[0]) is MHGD and made[1] is pull
    with pytest.raises(ValueError, match="rk_d"):
        methods.parts("mhgd+rk_d")
    for each in (["recommended", "rkd"], "recommended+rkd"):
        names = [methods.name_of(part) for part in methods.parts(each)]
        assert names == ["mhgd_cross", "soft_logits", "dist", "rkd"]
    for several in ("recommended", "mhgd+rkd"):
        with pytest.raises(ValueError, match="must stand for one method"):
            methods.get(several)
    with pytest.raises(ValueError, match="one method or more"):
        methods.parts([])


def test_parts_need_not_fit_each_other_yet(small_net):
    mhgd, kd_svd = methods.parts("mhgd+kd_svd")
    assert (type(mhgd), type(kd_svd)) == (MHGD, methods.KDSVD)
    (alone,) = methods.parts("rkd")
    assert type(alone) is methods.RKD
    with pytest.raises(ValueError, match="kd_sdv"):
        methods.parts("mhgd+kd_sdv")
    # So one of two that clip can be told not to.
    made = options.methods("mhgd+kd_svd", ["kd_svd.clipping=null"])
    assert [each.clipping for each in made] == ["per_variable", None]
    hp = keras_tuner.HyperParameters()
    fixed = {"kd_svd": {"clipping": None, "clip_bound": 1.0}}
    made = keras_mhgd.tuning.search_method(hp, "mhgd+kd_svd", fixed)
    assert [each.clipping for each in made] == ["per_variable", None]


@pytest.mark.parametrize(
    "made", ["mhgd+kd_svd", lambda: [MHGD(), Clipped()]], ids=["names", "own"]
)
def test_two_that_limit_their_gradient_are_refused(small_net, made):
    made = made if isinstance(made, str) else made()
    with pytest.raises(ValueError, match="at most one .*clipping=None"):
        keras_mhgd.Distiller(small_net("s"), small_net("t"), made)


def test_needs_the_sensing_points_of_all(small_net):
    made = [methods.FitNet(), methods.FSP(), Pull()]
    with pytest.raises(ValueError, match="must give 2 or more layers"):
        keras_mhgd.Distiller(small_net("s"), small_net("t"), made, ["stage1"])
    assert not any(each.built for each in made)


class Clipped(Pull):
    terms = ("clipped",)

    def __init__(self):
        super().__init__()
        self.gradient_rule = gradients.get("formula")


def test_a_number_that_a_term_has_by_itself_is_not_taken_again(distiller):
    class Second(Pull):
        terms = ("pull_2",)

    model = distiller([Pull(), Second(), Pull()])
    assert model.terms == ("pull", "pull_2", "pull_3")
