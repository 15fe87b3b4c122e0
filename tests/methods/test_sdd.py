import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness.situations import SITUATIONS
from keras_mhgd.features import Features
from keras_mhgd.methods.dist import DIST
from keras_mhgd.methods.dkd import DKD
from keras_mhgd.methods.mlkd import MLKD
from keras_mhgd.methods.sdd import SDD, cell_logits, cell_weights
from keras_mhgd.methods.soft_logits import SoftLogits

CLASSES = 3


def drawn(seed, size=4, batch=5):
    shape = (batch, size, size, CLASSES)
    return 3 * np.random.default_rng(seed).normal(size=shape)


def cells_of(maps, scales):
    """The means of cells by numpy: a list of `(batch, classes)`."""
    size = maps.shape[1]
    found = []
    for scale in scales:
        bounds = [
            (i * size // scale, -(-(i + 1) * size // scale))
            for i in range(scale)
        ]
        found += [
            maps[:, top:bottom, left:right].mean((1, 2))
            for top, bottom in bounds
            for left, right in bounds
        ]
    return found


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def soft_logits(student, teacher, labels, temperature=4.0):
    ours, theirs = (
        softmax(student / temperature),
        softmax(teacher / temperature),
    )
    return temperature**2 * (theirs * np.log(theirs / ours)).sum(-1)


def dkd(student, teacher, labels, temperature=4.0, beta=8.0):
    found = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        others = np.arange(CLASSES) != y
        b_s, b_t = (
            np.array([p[y], 1 - p[y]])
            for p in (softmax(s / temperature), softmax(t / temperature))
        )
        q_s, q_t = (softmax(z[others] / temperature) for z in (s, t))
        target = (b_t * np.log(b_t / b_s)).sum()
        rest = (q_t * np.log(q_t / q_s)).sum()
        found.append(temperature**2 * (target + beta * rest))
    return np.array(found)


def nkd(student, teacher, labels, gamma=1.5):
    found = []
    for s, t, y in zip(student, teacher, labels, strict=True):
        others = np.arange(CLASSES) != y
        target = softmax(t)[y] * np.log(softmax(s)[y])
        rest = softmax(t[others]) * np.log(softmax(s[others]))
        found.append(-target - gamma * rest.sum())
    return np.array(found)


def of_the_formula(of_rows, student, teacher, labels, scales, complementary):
    """Mean over samples and cells of the weighted losses, in float64."""
    whole = teacher.mean((1, 2)).argmax(-1)
    found = []
    for ours, theirs in zip(
        cells_of(student, scales), cells_of(teacher, scales), strict=True
    ):
        weights = np.where(theirs.argmax(-1) == whole, 1, complementary)
        found.append(weights * of_rows(ours, theirs, labels))
    return np.mean(found)


def total(method, student, teacher, labels=None):
    found = method.call(
        *(
            Features(None, [], logit_map=tf.convert_to_tensor(each))
            for each in (student, teacher)
        ),
        labels,
    )
    return tf.add_n(list(found.values()))


@pytest.mark.parametrize("scales", [(1,), (2,), (1, 2), (1, 2, 4), (3, 1)])
@pytest.mark.parametrize("complementary", [0.0, 1.0, 2.0])
def test_the_formula(scales, complementary):
    student, teacher = drawn(0), drawn(1)
    method = SDD(SoftLogits(weight=1.0), scales, complementary, weight=0.5)
    expected = 0.5 * of_the_formula(
        soft_logits, student, teacher, None, scales, complementary
    )
    found = float(total(method, student, teacher))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("inner", [dkd, nkd])
def test_methods_with_labels_inside(inner):
    name = inner.__name__
    student, teacher = drawn(0), drawn(1)
    labels = np.array([0, 2, 1, 1, 0])
    expected = of_the_formula(inner, student, teacher, labels, (1, 2, 4), 2)
    method = SDD(name)
    found = float(total(method, student, teacher, tf.constant(labels)))
    assert found == pytest.approx(expected, rel=1e-6)
    assert method.terms == (f"sdd_{name}_target", f"sdd_{name}_non_target")


@pytest.mark.parametrize("inner", ["dkd", "nkd"])
def test_images_without_a_label_are_left_out(inner):
    student, teacher = drawn(0), drawn(1)
    labels = np.array([0, -1, 1, -1, 0])
    kept = labels >= 0
    expected = total(
        SDD(inner), student[kept], teacher[kept], tf.constant(labels[kept])
    )
    found = total(SDD(inner), student, teacher, tf.constant(labels))
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_one_scale_of_one_cell_is_the_method_itself():
    student, teacher = drawn(0), drawn(1)
    found = total(SDD("soft_logits", [1]), student, teacher)
    (expected,) = (
        SoftLogits()
        .call(
            *(
                Features(None, [], logits=tf.constant(each.mean((1, 2))))
                for each in (student, teacher)
            ),
            None,
        )
        .values()
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_cells_of_maps_of_any_size(size):
    """A map smaller than the grid gives a position to several cells."""
    maps = drawn(0, size)
    found = cell_logits(tf.constant(maps), (1, 2, 4))
    expected = np.stack(cells_of(maps, (1, 2, 4)), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_student_and_teacher_of_other_sizes():
    student, teacher = drawn(0, 7), drawn(1, 3)
    expected = of_the_formula(soft_logits, student, teacher, None, (1, 2), 2)
    method = SDD(SoftLogits(weight=1.0), (1, 2))
    found = float(total(method, student, teacher))
    assert found == pytest.approx(expected, rel=1e-6)


def test_weights_by_hand():
    """The left half says class 0, more strongly than the right half class 1."""
    logits = np.zeros((1, 2, 2, CLASSES))
    logits[0, :, 0, 0] = 3.0
    logits[0, :, 1, 1] = 2.0
    found = cell_weights(tf.constant(logits), (1, 2), 2.0)
    np.testing.assert_array_equal(found, [[1, 1, 2, 1, 2]])


def test_gradient_against_finite_differences():
    student, teacher = drawn(0), drawn(1)
    variable, step = tf.constant(student), 1e-6
    with tf.GradientTape() as tape:
        tape.watch(variable)
        loss = total(SDD(SoftLogits(weight=1.0)), variable, teacher)

    def expected(x):
        return of_the_formula(soft_logits, x, teacher, None, (1, 2, 4), 2)

    numeric = np.zeros_like(student)
    for index in np.ndindex(*student.shape):
        high, low = student.copy(), student.copy()
        high[index] += step
        low[index] -= step
        numeric[index] = (expected(high) - expected(low)) / (2 * step)
    np.testing.assert_allclose(
        tape.gradient(loss, variable), numeric, atol=1e-7
    )


def test_no_gradient_flows_into_the_teacher():
    teacher = tf.constant(drawn(1))
    with tf.GradientTape() as tape:
        tape.watch(teacher)
        loss = total(SDD(), drawn(0), teacher)
    assert tape.gradient(loss, teacher) is None


def test_the_loss_of_a_training_step(small_net, images):
    """The classifier of each network, applied to each position by numpy."""
    x, y = images
    student, teacher = small_net("student", (5, 6)), small_net("teacher")
    distiller = keras_mhgd.Distiller(student, teacher, "sdd")
    distiller.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def logit_map(network, training):
        last = keras.Model(network.input, network.get_layer("stage2").output)
        kernel, bias = network.get_layer("logits").get_weights()
        maps = np.float64(last(x, training=training))
        return maps @ np.float64(kernel) + bias

    expected = 0.9 * of_the_formula(
        soft_logits,
        logit_map(student, True),
        logit_map(teacher, False),
        None,
        (1, 2, 4),
        2,
    )
    kernel = student.get_layer("logits").kernel.numpy()
    found = distiller.train_step((tf.constant(x), tf.constant(y)))
    assert float(found["sdd_soft_logits"]) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_array_equal(
        student.get_layer("logits").kernel.numpy(), kernel
    )


def test_trains_without_labels(small_net, images):
    x, _ = images
    distiller = keras_mhgd.Distiller(small_net("s"), small_net("t"), "sdd")
    distiller.compile("sgd", loss=None)
    before = distiller.student.get_weights()
    history = distiller.fit(x, verbose=0).history
    assert np.isfinite(history["sdd_soft_logits"]).all()
    assert all(
        (a != b).any()
        for a, b in zip(before, distiller.student.get_weights(), strict=True)
    )


def test_configuration_keeps_the_inner_method():
    method = SDD(DKD(beta=2.0), (1, 2), 3.0)
    found = SDD.from_config(method.get_config())
    assert isinstance(found.method, DKD) and found.method.beta == 2.0
    assert found.scales == (1, 2) and found.complementary == 3.0
    assert found.get_config() == method.get_config()


def test_refuses_networks_without_a_logit_map():
    situation = SITUATIONS["single_label"]
    message = (
        "reads the last map must get networks of one output, whose class.*"
        "GlobalAveragePooling2D.*Received: 'student', which does not end so"
    )
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(situation.student(), situation.teacher(), "sdd")


def test_refuses_maps_of_unknown_size(small_net):
    networks = small_net("student", size=None), small_net("teacher", size=None)
    message = "SDD divides the last map.*known size. Received: logits of shape"
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(*networks, "sdd")


def test_refuses_other_classes(small_net):
    networks = small_net("student"), small_net("teacher", classes=5)
    with pytest.raises(ValueError, match="classes"):
        keras_mhgd.Distiller(*networks, "sdd")
    shapes = [Features(None, [], logit_map=(None, 4, 4, n)) for n in (3, 5)]
    with pytest.raises(ValueError, match="same classes.*Received: 3 and 5"):
        SDD().build(*shapes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "dist"}, ValueError, "`method` must be one of soft_logits"),
        (
            {"method": DIST()},
            ValueError,
            "all means over sam.*Received: DIST. P",
        ),
        ({"method": MLKD()}, ValueError, "Received: MLKD, whose mlkd_batch, "),
        ({"method": 3}, TypeError, "`method` must be one of.*Received: 3"),
        ({"scales": ()}, ValueError, r"`scales` must be one or more.*\(\)"),
        ({"scales": 2}, ValueError, "`scales` must be one or more.*scales=2"),
        ({"scales": (1, 0)}, ValueError, "`scales` must be 1 or more.*=0"),
        ({"scales": (1.5,)}, TypeError, "`scales` must be an integer.*1.5"),
        ({"complementary": -1}, ValueError, "`complementary` must be 0 or"),
    ],
    ids=str,
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SDD(**arguments)


def test_refuses_an_inner_method_of_another_distiller(small_net):
    inner = SoftLogits()
    keras_mhgd.Distiller(small_net("student"), small_net("teacher"), inner)
    with pytest.raises(ValueError, match="`method` must be new. Received"):
        SDD(inner)
