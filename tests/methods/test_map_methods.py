"""What every method on feature maps does beside test_contract.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.features import Features
from keras_mhgd.features.compression import student_vector, teacher_vector
from keras_mhgd.methods import Needs, attention_transfer, fsp, kd_svd, nst
from keras_mhgd.methods import similarity_preserving as sp
from keras_mhgd.methods.fitnet import FitNet, hint_loss
from tests.methods.calls import called

BATCH = 4
SHAPES = ((6, 6, 5), (4, 4, 6), (2, 3, 7))
SMALLER = ((4, 6, 5), (4, 4, 6), (2, 2, 7))

METHODS = {
    "similarity_preserving": (sp.SimilarityPreserving, 3000.0, {}),
    "attention_transfer": (
        attention_transfer.AttentionTransfer,
        500.0,
        {"power": 3},
    ),
    "nst": (nst.NST, 50.0, {}),
    "fsp": (fsp.FSP, 5e-4, {"pooling": "average", "reduction": "mean"}),
    "fitnet": (FitNet, 1.0, {"project": "teacher"}),
    "kd_svd": (
        kd_svd.KDSVD,
        1.0,
        {
            "bandwidth": 2.0,
            "reduction": "mean",
            "clipping": "formula",
            "clip_bound": 0.5,
        },
    ),
    "kd_svdf": (
        kd_svd.KDSVDF,
        1.0,
        {"reduction": "mean", "clipping": None, "clip_bound": 0.5},
    ),
}
each_method = pytest.mark.parametrize("name", METHODS)


def by_vectors(loss):
    """The loss of vectors, as one of maps."""

    def of_maps(student, teacher):
        teacher = [teacher_vector(each) for each in teacher]
        pairs = zip(student, teacher, strict=True)
        return loss([student_vector(*pair) for pair in pairs], teacher)

    return of_maps


def fsp_variant(student, teacher):
    return fsp.fsp_loss(student, teacher, "average", "mean")


def cubed(student, teacher):
    return attention_transfer.attention_transfer_loss(student, teacher, 3)


LOSSES = {
    "similarity_preserving": sp.similarity_preserving_loss,
    "attention_transfer": attention_transfer.attention_transfer_loss,
    "attention_transfer_cubed": cubed,
    "nst": nst.neuron_selectivity_loss,
    "fsp": fsp.fsp_loss,
    "fsp_variant": fsp_variant,
    "hint": hint_loss,
    "kd_svd": by_vectors(kd_svd.singular_relation_loss),
    "kd_svdf": by_vectors(kd_svd.singular_vector_loss),
}


def features(seed=0, batch=BATCH, shapes=SHAPES, dtype="float32"):
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(batch, *shape)) for shape in shapes]
    return Features(None, [tf.cast(each, dtype) for each in maps])


def built(method, student=SHAPES, teacher=SHAPES):
    method.build(
        *(
            Features(None, [(None, *shape) for shape in shapes])
            for shapes in (student, teacher)
        )
    )
    return method


def run(method, student, teacher):
    with tf.GradientTape() as tape:
        tape.watch([student.maps, teacher.maps])
        terms = called(method, student, teacher)
        (loss,) = terms.values()
    assert tuple(terms) == method.terms
    assert loss.dtype == tf.float32
    found = tape.gradient(
        loss,
        [student.maps, teacher.maps],
        unconnected_gradients=tf.UnconnectedGradients.NONE,
    )
    assert found[1] == [None] * len(teacher.maps)
    return float(loss), [each for each in found[0] if each is not None]


@each_method
def test_what_it_is(name):
    cls, weight, _ = METHODS[name]
    method = cls()
    assert method.terms == (name,)
    least = 2 if name in ("fsp", "kd_svd") else 1
    assert method.needs == Needs(maps=True, least_points=least)
    assert method.weight == weight
    clips = isinstance(method.gradient_rule, gradients.PerVariableClipping)
    assert clips == name.startswith("kd_svd")


@each_method
def test_config_round_trip_of_every_argument(name):
    cls, _, arguments = METHODS[name]
    given = {**arguments, "weight": 0.25, "name": "mine"}
    method = cls(**given)
    found = cls.from_config(method.get_config())
    assert found.get_config() == method.get_config()
    assert {key: getattr(found, key) for key in given} == given
    config = keras.saving.serialize_keras_object(method)
    found = keras.saving.deserialize_keras_object(config)
    assert type(found) is cls
    assert keras.saving.serialize_keras_object(found) == config
    assert type(found.gradient_rule) is type(method.gradient_rule)


@each_method
def test_zero_and_smallest_where_student_equals_teacher(name):
    cls, weight, _ = METHODS[name]
    method, teacher = built(cls()), features()
    loss, gradient = run(method, teacher, teacher_like(teacher))
    assert abs(loss) < 1e-5 * weight
    assert max(np.abs(each).max() for each in gradient) < 1e-4 * weight
    other, _ = run(method, features(1), teacher)
    assert other > 1e-4 * weight


def teacher_like(features):
    return Features(None, [tf.identity(each) for each in features.maps])


@each_method
def test_order_of_the_batch_does_nothing(name):
    method = built(METHODS[name][0](), teacher=SMALLER)
    student, teacher = features(0), features(1, shapes=SMALLER)
    expected, _ = run(method, student, teacher)
    order = [2, 0, 3, 1]
    permuted = (
        Features(None, [tf.gather(feature, order) for feature in each.maps])
        for each in (student, teacher)
    )
    found, _ = run(method, *permuted)
    assert found == pytest.approx(expected, rel=1e-5)


@each_method
def test_weight_multiplies(name):
    cls, weight, _ = METHODS[name]
    pair = features(0), features(1)
    one, _ = run(built(cls(weight=1.0)), *pair)
    default, _ = run(built(cls()), *pair)
    assert default == pytest.approx(weight * one, rel=1e-5)
    with pytest.raises(ValueError, match="`weight` must be 0 or more"):
        cls(weight=-1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_against_finite_differences(name, close):
    student = features(0, 3, dtype="float64").maps
    teacher = features(1, 3, SMALLER, dtype="float64").maps
    loss = LOSSES[name]
    with tf.GradientTape() as tape:
        tape.watch(student)
        value = loss(student, teacher)
    assert value.dtype == tf.float64
    gradient, step = tape.gradient(value, student), 1e-5
    rng = np.random.default_rng(2)
    for _ in range(3):
        directions = [rng.normal(size=each.shape) for each in student]
        high, low = (
            [
                x + sign * step * d
                for x, d in zip(student, directions, strict=True)
            ]
            for sign in (1, -1)
        )
        numeric = float(loss(high, teacher) - loss(low, teacher)) / (2 * step)
        found = sum(
            np.sum(g * d) for g, d in zip(gradient, directions, strict=True)
        )
        close(found, numeric, 1e-6)
        assert abs(numeric) > 1e-7


@pytest.mark.slow
def test_compiled_by_xla_as_eager():
    names = [name for name in LOSSES if "svd" not in name]
    shapes = SHAPES[1:], SMALLER[1:]

    def values(student, teacher):
        return [LOSSES[name](student, teacher) for name in names]

    student, teacher = (
        features(seed, shapes=each).maps for seed, each in enumerate(shapes)
    )
    compiled = tf.function(values, jit_compile=True)
    np.testing.assert_allclose(
        compiled(student, teacher), values(student, teacher), rtol=1e-4
    )


@pytest.mark.parametrize("name", ["attention_transfer", "nst"])
def test_more_than_one_position(name):
    shapes = (*SHAPES, (5,))
    with pytest.raises(ValueError, match="`more than one position` .*Choose"):
        built(METHODS[name][0](), shapes, shapes)


@pytest.mark.parametrize("name", ["fsp", "fitnet"])
def test_sizes_must_go_together(name):
    shapes = ((4, 4, 3), (4, 3))
    other = ((4, 3), (4, 3)) if name == "fitnet" else shapes
    with pytest.raises(ValueError, match="must both be `maps "):
        built(METHODS[name][0](), shapes, other)


@pytest.mark.parametrize(
    ("name", "argument", "value", "message"),
    [
        ("attention_transfer", "power", 0, "`power` must be an integer, 1 or"),
        ("attention_transfer", "power", 1.5, "Received: power=1.5. The paper"),
        ("fsp", "pooling", "min", "`pooling` must be one of max, average. Rec"),
        ("fsp", "reduction", "meen", "Received: reduction='meen'. Did you me"),
        ("fitnet", "project", "both", "`project` must be one of student, teac"),
        ("kd_svd", "bandwidth", 0.0, "`bandwidth` must be positive. Received"),
        ("kd_svd", "reduction", "max", "`reduction` must be one of sum, mean"),
        ("kd_svdf", "reduction", "max", "`reduction` must be one of sum, mean"),
        ("kd_svdf", "clipping", "norm", "`clipping` must be one of per_varia"),
        ("kd_svd", "clip_bound", 0.0, "`clip_bound` must be positive. Receiv"),
    ],
)
def test_wrong_arguments(name, argument, value, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name][0](**{argument: value})


@pytest.mark.parametrize("name", ["similarity_preserving", "fitnet", "kd_svd"])
def test_sequences_and_vectors(name):
    shapes = ((6, 5), (4, 5), (5,))
    method = built(METHODS[name][0](), shapes, shapes)
    loss, _ = run(
        method, features(0, shapes=shapes), features(1, shapes=shapes)
    )
    assert np.isfinite(loss) and loss > 0
