"""What the methods on logits and on embeddings have in common."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.methods.correlation_congruence import CorrelationCongruence
from keras_mhgd.methods.dist import DIST
from keras_mhgd.methods.dkd import DKD
from keras_mhgd.methods.ea_kd import EAKD
from keras_mhgd.methods.mlkd import MLKD
from keras_mhgd.methods.nkd import NKD
from keras_mhgd.methods.pkt import PKT
from keras_mhgd.methods.rkd import RKD
from keras_mhgd.methods.rld import RLD
from keras_mhgd.methods.skd import SKD
from keras_mhgd.methods.soft_logits import SoftLogits
from keras_mhgd.methods.ttm import TTM, WTTM

BATCH, CLASSES, WIDTH = 5, 4, 6

METHODS = {
    "soft logits": lambda: SoftLogits(weight=2.0),
    "soft logits, not scaled": lambda: SoftLogits(scale_by_temperature=False),
    "soft logits, standardized": lambda: SoftLogits(2.0, standardize=True),
    "dkd": lambda: DKD(weight=2.0),
    "dkd, standardized": lambda: DKD(temperature=2.0, standardize=True),
    "nkd": lambda: NKD(weight=2.0),
    "nkd, standardized": lambda: NKD(3.5, 3.0, standardize=True),
    "ttm": lambda: TTM(weight=2.0),
    "ttm, standardized": lambda: TTM(2.0, standardize=True),
    "wttm": lambda: WTTM(weight=2.0),
    "rld": lambda: RLD(weight=2.0),
    "rld, standardized": lambda: RLD(2.0, 3.0, 2.0, 2.0, standardize=True),
    "mlkd": lambda: MLKD(weight=2.0),
    "mlkd, standardized": lambda: MLKD([1.0, 2.0], standardize=True),
    "ea_kd": lambda: EAKD(weight=2.0),
    "ea_kd of dkd": lambda: EAKD(DKD(name="dkd"), 2.0),
    "dist": lambda: DIST(weight=2.0),
    "dist, standardized": lambda: DIST(2.0, 3.0, 4.0, standardize=True),
    "skd": lambda: SKD(weight=2.0),
    "skd, as the code": lambda: SKD(4.0, 0.1, True, True, weight=0.9),
    "rkd": lambda: RKD(weight=2.0),
    "rkd, normalized": lambda: RKD(1.0, 3.0, normalize=True),
    "pkt": lambda: PKT(),
    "cc, kernel": lambda: CorrelationCongruence(order=3, gamma=0.5),
    "cc, neighbours": lambda: CorrelationCongruence("neighbours", weight=0.02),
}
LOGIT_METHODS = [SoftLogits, DKD, NKD, TTM, WTTM, RLD, MLKD, EAKD, DIST]


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]()


def relates(method):
    """Whether the method compares relations, whatever the widths."""
    return method.needs.fields == ("embedding",) and (
        getattr(method, "relation", None) != "neighbours"
    )


def pair(method, batch=BATCH):
    width = CLASSES if method.needs.fields == ("logits",) else WIDTH
    rng = np.random.default_rng(0)
    student = rng.normal(size=(batch, width))
    return student, rng.normal(size=(batch, width + relates(method)))


def labels(batch=BATCH):
    return np.arange(batch) % CLASSES


def features(method, *tensors):
    """Stands in for `Features` that have what the method needs alone."""
    field = method.needs.fields[0]
    return [Features(None, [], **{field: each}) for each in tensors]


def terms(method, student, teacher):
    student, teacher = map(tf.convert_to_tensor, (student, teacher))
    pair = features(method, student, teacher)
    return method.call(*pair, labels(student.shape[0]))


def total(method, student, teacher):
    return tf.add_n(list(terms(method, student, teacher).values()))


def gradients(method, student, teacher):
    student, teacher = tf.constant(student), tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch([student, teacher])
        loss = total(method, student, teacher)
    found, of_teacher = tape.gradient(loss, [student, teacher])
    assert of_teacher is None
    return loss, found


def test_interface(method):
    student, teacher = pair(method)
    found = terms(method, student.astype("float32"), teacher.astype("float32"))
    assert tuple(found) == method.terms
    assert len(method.needs.fields) == 1
    for value in found.values():
        assert value.dtype == tf.float32 and value.shape == ()
        assert float(value) > 0
    shapes = [(None, each.shape[-1]) for each in (student, teacher)]
    method.build(*features(method, *shapes))
    assert method.built and not method.trainable_variables
    assert {each.name for each in method.weights} == {"weight"}


@pytest.mark.parametrize(
    "method",
    # EA-KD takes the student's entropies as constants: see its own test.
    [name for name in METHODS if not name.startswith("ea_kd")],
    indirect=True,
)
def test_gradient_against_finite_differences(method):
    student, teacher = pair(method)
    loss, found = gradients(method, student, teacher)
    assert loss.dtype == tf.float64
    numeric, step = np.zeros_like(student), 1e-6
    for index in np.ndindex(*student.shape):
        high, low = student.copy(), student.copy()
        high[index] += step
        low[index] -= step
        difference = total(method, high, teacher) - total(method, low, teacher)
        numeric[index] = float(difference) / (2 * step)
    scale = np.abs(numeric).max()
    assert scale > 1e-5
    np.testing.assert_allclose(found, numeric, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "method",
    # A label, or a temperature of one network, asks for more than equality.
    [
        name
        for name in METHODS
        if name.split(",")[0] not in ("nkd", "ttm", "wttm", "rld")
    ],
    indirect=True,
)
def test_zero_where_student_equals_teacher(method):
    student, _ = pair(method)
    loss, found = gradients(method, student, student)
    assert float(loss) == pytest.approx(0, abs=1e-10)
    # The 1e-7 in PKT's logarithm moves its minimum by about that much.
    np.testing.assert_allclose(found, 0, atol=1e-8 * method.weight)


def test_order_of_the_batch(method):
    student, teacher = pair(method)
    order = np.array([3, 0, 4, 1, 2])
    loss = float(total(method, student, teacher))
    permuted = features(method, student[order], teacher[order])
    permuted = sum(method.call(*permuted, labels()[order]).values())
    depends = getattr(method, "relation", None) == "neighbours"
    assert (float(permuted) == pytest.approx(loss, rel=1e-9)) != depends


DEGENERATE = {
    "zero student": (lambda x: 0 * x, None),
    "zero teacher": (None, lambda x: 0 * x),
    "both zero": (lambda x: 0 * x, lambda x: 0 * x),
    "constant": (lambda x: 0 * x + 0.1, lambda x: 0 * x - 2),
    "equal rows": (lambda x: 0 * x + x[:1], lambda x: 0 * x + x[:1]),
    "a zero row": (lambda x: x * labels()[:, None], None),
    "one sample": (lambda x: x[:1], lambda x: x[:1]),
    "tiny": (lambda x: 1e-30 * x, lambda x: 1e-30 * x),
    "large": (lambda x: 1e4 * x, lambda x: 1e4 * x),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_input(method, name):
    pairs = zip(DEGENERATE[name], pair(method), strict=True)
    student, teacher = (
        (change(each) if change else each).astype("float32")
        for change, each in pairs
    )
    loss, found = gradients(method, student, teacher)
    assert np.isfinite(loss) and float(loss) >= -1e-5
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_half_precision_is_computed_in_float32(method, dtype, scale):
    student, teacher = (tf.cast(scale * each, dtype) for each in pair(method))
    loss, found = gradients(method, student, teacher)
    assert loss.dtype == tf.float32
    expected = total(
        method, tf.cast(student, tf.float32), tf.cast(teacher, tf.float32)
    )
    assert float(loss) == float(expected)
    assert found.dtype == dtype
    if scale == 1:
        assert np.isfinite(tf.cast(found, tf.float32)).all()


def test_graph_of_unknown_batch_equals_eager(method):
    student, teacher = (each.astype("float32") for each in pair(method))
    signature = [
        tf.TensorSpec((None, student.shape[1])),
        tf.TensorSpec((None, teacher.shape[1])),
        tf.TensorSpec((None,), tf.int64),
    ]

    @tf.function(input_signature=signature)
    def in_graph(student, teacher, labels):
        pair = features(method, student, teacher)
        return sum(method.call(*pair, labels).values())

    found = in_graph(student, teacher, labels())
    expected = total(method, student, teacher)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_config_round_trip(method):
    config = method.get_config()
    again = type(method).from_config(config)
    assert again.get_config() == config
    assert vars(again).keys() == vars(method).keys()
    found = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(method)
    )
    assert type(found) is type(method) and found.get_config() == config
    student, teacher = pair(method)
    expected = float(total(method, student, teacher))
    assert float(total(again, student, teacher)) == expected


@pytest.mark.parametrize("kind", LOGIT_METHODS)
@pytest.mark.parametrize("counts", [(3, 4), (1, 2)])
def test_classes_must_agree(kind, counts):
    shapes = [Features(None, [], logits=(None, count)) for count in counts]
    message = "`logits` must be of the same classes .*Received: %d and %d outp"
    with pytest.raises(ValueError, match=message % counts):
        kind().build(*shapes)


@pytest.mark.parametrize("kind", LOGIT_METHODS)
def test_one_output_is_the_logit_of_the_second_of_two_classes(kind):
    """sigmoid(z) is the second of softmax(0, z)."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 6, 1))
    labels = tf.constant([0, 1, 1, 0, 1, 0])
    found, expected = (
        kind().call(
            *(
                Features(None, [], logits=tf.constant(logits))
                for logits in pair
            ),
            labels,
        )
        for pair in (
            (student, teacher),
            [np.hstack([0 * each, each]) for each in (student, teacher)],
        )
    )
    assert expected
    for term, value in expected.items():
        np.testing.assert_allclose(found[term], value, rtol=1e-6)
