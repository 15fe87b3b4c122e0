import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from keras_mhgd.features import Features
from keras_mhgd.methods.ea_kd import EAKD, learning_values
from keras_mhgd.tasks import MULTI_LABEL, Task

LABELS = np.array([3, 0, 1, 1, 2])
EACH = {
    "soft_logits": lambda: methods.SoftLogits(weight=2.0),
    "soft_logits, standardized": lambda: methods.SoftLogits(standardize=True),
    "dkd": lambda: methods.DKD(),
    "nkd": lambda: methods.NKD(),
    "ttm": lambda: methods.TTM(),
    "wttm": lambda: methods.WTTM(),
    "rld": lambda: methods.RLD(),
}


def logits(seed, shape=(5, 4)):
    return np.random.default_rng(seed).normal(scale=2.0, size=shape)


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def by_formula(student, teacher, temperature=3.0):
    found = []
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t / temperature), softmax(s / temperature)
        of_teacher = -np.sum(p * np.log(p))
        of_student = -np.sum(q * np.log(q))
        product = of_teacher * of_student / np.log(len(s))
        found.append((of_teacher + product) / 2)
    return np.array(found)


def features(array, weights=None):
    return Features(None, [], logits=tf.constant(array), weights=weights)


def terms(method, student, teacher, labels=LABELS, weights=None):
    found = method.call(features(student, weights), features(teacher), labels)
    return np.array([float(found[term]) for term in method.terms])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_values_are_the_formula(temperature):
    pair = logits(0), logits(1)
    found = learning_values(*pair, temperature)
    np.testing.assert_allclose(found, by_formula(*pair, temperature))


def test_values_by_hand():
    """(1/2, 1/4, 1/4) has entropy 3/2 log 2, and (1, 1, 1) / 3 log 3.

    Of the four pairs with a network that is sure, those of a sure teacher
    have no value, and those of a sure student half the teacher's entropy.
    """
    half, even, sure = np.log([2.0, 1, 1]), np.zeros(3), [1e4, 0, 0]
    student = np.array([even, half, sure, even, sure])
    teacher = np.array([even, even, half, sure, sure])
    found = learning_values(student, teacher, 1.0)
    of_half = 1.5 * np.log(2)
    expected = [
        np.log(3),
        (np.log(3) + of_half) / 2,
        of_half / 2,
        0,
        0,
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", EACH)
def test_weights_the_loss_of_each_sample(name):
    """mean_b value_b loss_b, from the method's loss of one sample at a time."""
    pair = logits(0), logits(1)
    expected = 0
    for value, s, t, y in zip(by_formula(*pair), *pair, LABELS, strict=True):
        expected += value * terms(EACH[name](), s[None], t[None], y[None]) / 5
    found = terms(EAKD(EACH[name](), weight=3.0), *pair)
    assert found.all()
    np.testing.assert_allclose(found, 3 * expected, rtol=1e-6)


def test_soft_logits_by_the_formula():
    pair = logits(0), logits(1)
    losses = []
    for s, t in zip(*pair, strict=True):
        p, q = softmax(t / 4), softmax(s / 4)
        losses.append(0.9 * 16 * np.sum(p * np.log(p / q)))
    expected = np.mean(by_formula(*pair) * losses)
    np.testing.assert_allclose(terms(EAKD(), *pair), [expected], rtol=1e-12)


def test_only_means_over_samples_are_weighted():
    pair = logits(0), logits(1)
    plain, (instance, *others) = (
        terms(each, *pair) for each in (methods.MLKD(), EAKD(methods.MLKD()))
    )
    np.testing.assert_allclose(others, plain[1:], rtol=1e-12)
    one_by_one = [
        terms(methods.MLKD(), s[None], t[None])[0]
        for s, t in zip(*pair, strict=True)
    ]
    expected = np.mean(by_formula(*pair) * one_by_one)
    np.testing.assert_allclose(instance, expected, rtol=1e-12)
    # Samples of no value still relate to each other.
    sure = 1e4 * np.eye(4)[LABELS]
    plain, found = (
        terms(each, pair[0], sure)
        for each in (methods.MLKD(), EAKD(methods.MLKD()))
    )
    np.testing.assert_allclose(found, [0, *plain[1:]], rtol=1e-12)


@pytest.mark.parametrize("name", ["soft_logits", "dkd"])
def test_rows_that_do_not_count(name):
    pair = logits(0), logits(1)
    counts = np.array([1, 0, 1, 1, 0.0])
    method = EAKD(EACH[name]())
    found = terms(method, *pair, weights=tf.constant(counts, tf.float32))
    some = counts > 0
    expected = terms(method, *(each[some] for each in (*pair, LABELS)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if name == "dkd":  # nor do those without a label
        found = terms(method, *pair, np.where(some, LABELS, -1))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["soft_logits", "dkd"])
def test_independent_labels_have_values_of_their_own(name):
    """Each is a choice between no and yes, with logits 0 and z."""
    pair = logits(0, (3, 2)), logits(1, (3, 2))
    labels = np.array([[0, 1], [1, 1], [1, 0]])
    method = EAKD(EACH[name]())
    method.task = Task(MULTI_LABEL)
    found = terms(method, *pair, labels)
    rows = [np.stack([np.zeros(6), each.reshape(-1)], axis=1) for each in pair]
    expected = terms(EAKD(EACH[name]()), *rows, labels.reshape(-1))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("name", EACH)
def test_values_are_constants_to_the_gradient(name):
    """Gradient against differences, with the values held fixed."""
    student, teacher = logits(0), logits(1)
    values = by_formula(student, teacher)
    tensor, method = tf.constant(student), EAKD(EACH[name]())
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        loss = tf.add_n(
            list(
                method.call(
                    Features(None, [], logits=tensor), features(teacher), LABELS
                ).values()
            )
        )
    found = tape.gradient(loss, tensor).numpy()

    def of_sample(index, s):
        return (
            values[index]
            * terms(
                EACH[name](), s[None], teacher[index][None], LABELS[index][None]
            ).sum()
        )

    step, numeric = 1e-6, np.zeros_like(student)
    for index in np.ndindex(*student.shape):
        high, low = (np.copy(student[index[0]]) for _ in range(2))
        high[index[1]] += step
        low[index[1]] -= step
        difference = of_sample(index[0], high) - of_sample(index[0], low)
        numeric[index] = difference / (2 * step) / len(student)
    scale = np.abs(numeric).max()
    np.testing.assert_allclose(found, numeric, atol=1e-6 * scale)


def test_large_logits():
    """The teacher is sure, so there is nothing to learn; and no NaN."""
    student = tf.constant([[0.0, 1e4, -1e4]])
    with tf.GradientTape() as tape:
        tape.watch(student)
        (loss,) = (
            EAKD()
            .call(
                Features(None, [], logits=student),
                features(np.float32([[1e4, 0, 0]])),
                None,
            )
            .values()
        )
    assert float(loss) == 0
    np.testing.assert_array_equal(tape.gradient(loss, student), [[0, 0, 0]])


def test_a_constant_added_to_all_logits_changes_nothing():
    pair = logits(0), logits(1)
    found = terms(EAKD(), pair[0] + 7, pair[1] - 3)
    np.testing.assert_allclose(found, terms(EAKD(), *pair), rtol=1e-11)


def test_saves_the_method_inside():
    method = EAKD(methods.RLD(beta=2.0, name="rld"), temperature=2.0)
    config = keras.saving.serialize_keras_object(method)
    found = methods.get(config)
    assert found.get_config() == method.get_config()
    assert (found.method.beta, found.temperature) == (2.0, 2.0)
    assert found.terms == ("ea_rld_confidence", "ea_rld_correlation")
    assert found.spans == found.method.spans == "batch"


def test_both_weights_train_along(small_net, task, images):
    """The other method's weight is a variable too, and is saved."""
    method = EAKD(methods.DKD(weight=2.0))
    model = keras_mhgd.Distiller(
        small_net("student"), small_net("teacher"), method
    )
    model.compile(**task())
    first = model.train_on_batch(*images, return_dict=True)
    assert [each.path.split("/")[-1] for each in method.weights] == (
        ["weight", "weight"]
    )
    assert {"ea_dkd_target", "ea_dkd_non_target"} < first.keys()


def test_needs_what_the_other_method_needs():
    with pytest.raises(ValueError, match="DKD must get labels.*without labels"):
        EAKD(methods.DKD()).call(features(logits(0)), features(logits(1)), None)
    assert EAKD(methods.SoftLogits(standardize=True)).needs.tasks == (
        "single_label",
    )
    assert EAKD().needs.tasks == ("single_label", "multi_label")


def test_refuses_an_inner_method_of_another_distiller(small_net):
    inner = methods.DKD()
    keras_mhgd.Distiller(small_net("student"), small_net("teacher"), inner)
    with pytest.raises(ValueError, match="`method` must be new. Received"):
        EAKD(inner)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"method": "dkd"},
            TypeError,
            "`method` must be a method on logits. R",
        ),
        (
            {"method": methods.FitNet()},
            TypeError,
            "`method` must be a method on logits. .* of type FitNet. Pass one",
        ),
        (
            {"method": methods.DIST()},
            ValueError,
            "a term that is a mean over samples, .* Received: DIST. Pass ano",
        ),
        (
            {"method": methods.MutualLearning()},
            ValueError,
            "a term that is a mean over samples, .*: MutualLearning. Pass",
        ),
        ({"temperature": 0}, ValueError, "`temperature` must be positive.*=0"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        EAKD(**arguments)
