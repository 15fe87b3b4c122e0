"""What holds for every method, whatever its formula."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from keras_mhgd.features import Features
from tests.methods.calls import called

BATCH, CLASSES = 6, 4
SIZES = (5, 4, 3)  # of the sensing points, height and width
WIDTHS = (5, 6, 7)
# Sensing points; others need 1.
AT_LEAST = {"mhgd": 2, "mhgd_cross": 2, "fsp": 2, "kd_svd": 2}
# Between the networks stand layers of the method's own, drawn at random, a
# margin, a label or a temperature: being equal is not what they ask for.
NO_MINIMUM_AT_EQUALITY = {
    "activation_boundaries",
    "crd",
    "factor_transfer",
    "nkd",
    "overhaul",
    "review_kd",
    "rld",
    "srd",
    "ttm",
    "vid",
    "wttm",
}


def features(seed, dtype="float32", batch=BATCH, value=None, least=0.0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        numbers = rng.normal(size=(batch, *shape))
        return tf.cast(numbers if value is None else 0 * numbers + value, dtype)

    before = [draw(s, s, width) for s, width in zip(SIZES, WIDTHS, strict=True)]
    logits = 2 * tf.cast(rng.normal(size=(batch, CLASSES)), dtype)
    return Features(
        logits,
        [tf.maximum(each, tf.cast(least, dtype)) for each in before],
        logits,
        tf.maximum(draw(8), tf.cast(least, dtype)),
        maps_before_activation=before,
        logit_map=draw(4, 4, CLASSES),
    )


def mapped(function, *found):
    """Applies a function to all tensors of `Features` side by side."""
    fields = [
        {k: v for k, v in each._asdict().items() if v is not None}
        for each in found
    ]
    return Features(**tf.nest.map_structure(function, *fields))


def made(method, points=3):
    """A built method; its random weights are the same every time."""
    keras.utils.set_random_seed(1)
    method = methods.get(method)
    maps = [(None, s, s, w) for s, w in zip(SIZES, WIDTHS, strict=True)]
    shapes = Features(
        (None, CLASSES),
        maps[:points],
        (None, CLASSES),
        (None, 8),
        maps_before_activation=maps[:points],
        logit_map=(None, 4, 4, CLASSES),
    )
    method.build(shapes, shapes)
    return method


def call(method, student, teacher):
    labels = tf.constant(np.arange(student.outputs.shape[0]) % CLASSES)
    return called(method, student, teacher, labels)


def total(terms):
    return tf.add_n(list(terms.values()))


def used(method, found):
    """The tensors of `Features` that a method reads."""
    return tf.nest.flatten(
        [getattr(found, need) for need in method.needs.fields]
    )


@pytest.fixture(params=methods.names())
def name(request):
    return request.param


def test_name_class_and_configuration_give_one_number(name):
    method = made(name)
    config = keras.saving.serialize_keras_object(methods.get(name))
    found = [
        call(made(each), features(0), features(1))
        for each in (name, type(method)(), config)
    ]
    assert tuple(found[0]) == method.terms
    for term, value in found[0].items():
        assert value.shape == ()
        assert value.dtype == tf.float32
        assert float(value) == float(found[1][term]) == float(found[2][term])
    assert type(method).from_config(method.get_config()).get_config() == (
        method.get_config()
    )


def test_config_round_trip(name):
    method = methods.get(name)
    config = keras.saving.serialize_keras_object(method)
    found = methods.get(config)
    assert type(found) is type(method)
    assert found is not method
    assert found.get_config() == method.get_config()
    assert keras.saving.serialize_keras_object(found) == config
    assert type(found.gradient_rule) is type(method.gradient_rule)


def test_declares_what_it_reads(name):
    """What it doesn't name may be missing; what it names it can't miss."""
    method = made(name)
    assert method.needs.fields

    def only(found, needs):
        read = {need: getattr(found, need) for need in needs}
        return Features(**{"outputs": found.outputs, "maps": [], **read})

    student, teacher = (only(features(i), method.needs.fields) for i in (0, 1))
    assert np.isfinite(total(call(method, student, teacher)))


def test_needs_so_many_sensing_points(name, small_net):
    method, networks = methods.get(name), (small_net("s"), small_net("t"))
    if not method.needs.points:
        assert made(name, points=0).built
        assert keras_mhgd.Distiller(*networks, name, []).built
        return
    least = AT_LEAST.get(name, 1)
    assert made(name, points=least).built
    message = f"`sensing_points` must give {least} or more layers, .* student: "
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(*networks, method, ["stage1"][: least - 1])
    kind = type(method).__name__
    message = f"`sensing_points` must give {kind} {least} or .*: {least - 1}. A"
    with pytest.raises(ValueError, match=message):
        made(method, points=least - 1)
    assert not method.built


@pytest.mark.parametrize(
    "name",
    [each for each in methods.names() if each not in NO_MINIMUM_AT_EQUALITY],
)
def test_equality_is_a_minimum(name):
    method, teacher = made(name), features(1)
    least = float(total(call(method, teacher, teacher)))
    for seed in range(5):
        near = mapped(lambda a, b: a + 0.05 * b, teacher, features(seed + 2))
        assert float(total(call(method, near, teacher))) >= least - 1e-6
    with tf.GradientTape() as tape:
        tensors = used(method, teacher)
        tape.watch(tensors)
        copy = mapped(tf.identity, teacher)
        loss = total(call(method, teacher, copy))
    for gradient in tape.gradient(loss, tensors):
        if gradient is not None:
            np.testing.assert_allclose(gradient, 0, atol=2e-3)


def test_the_order_of_samples_does_not_matter(name):
    method = made(name)
    order = np.random.default_rng(3).permutation(BATCH)
    labels = tf.constant(np.arange(BATCH) % CLASSES)
    found = features(0), features(1)
    permuted = [mapped(lambda a: tf.gather(a, order), each) for each in found]
    np.testing.assert_allclose(
        total(called(method, *found, labels)),
        total(called(method, *permuted, tf.gather(labels, order))),
        rtol=1e-4,
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("of_student", "of_teacher"),
    [
        ({}, {}),
        ({"least": -9.0}, {"least": -9.0}),  # no ReLU
        ({"value": 0.0}, {}),
        ({"value": 0.0}, {"value": 0.0}),
        ({"value": 1.0}, {}),
        ({"batch": 1}, {"batch": 1}),
    ],
    ids=str,
)
def test_loss_and_gradient_stay_finite(name, dtype, of_student, of_teacher):
    method = made(name)
    student = features(0, dtype, **of_student)
    teacher = features(1, dtype, **of_teacher)
    tensors = used(method, student)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = total(call(method, student, teacher))
    assert np.isfinite(loss)
    assert loss.dtype == tf.float32
    gradients = [g for g in tape.gradient(loss, tensors) if g is not None]
    assert gradients
    for gradient in gradients:
        assert gradient.dtype == dtype
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


def test_no_gradient_flows_into_a_frozen_teacher(name):
    method, teacher = made(name), features(1)
    tensors = used(method, teacher)
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = total(call(method, features(0), teacher))
    found = [each is not None for each in tape.gradient(loss, tensors)]
    assert found == [method.trains_teacher] * len(tensors)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.slow
def test_eager_graph_and_xla_agree(name, jit_compile):
    method = made(name)
    arguments = method, features(0), features(1)
    run = tf.function(
        lambda: call(*arguments), jit_compile=jit_compile, autograph=False
    )
    found = run()
    for term, value in call(*arguments).items():
        np.testing.assert_allclose(found[term], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    # CRD takes the student's embeddings as constants too, EA-KD the student's
    # entropies: see their own tests.
    "name",
    [each for each in methods.names() if each not in ("crd", "ea_kd")],
)
def test_gradient_agrees_with_differences(name):
    """Along the gradient: (L(x + e g) - L(x - e g)) / 2 e = |g|^2.

    In float64 where the method has no layers of its own, which are float32.
    """
    method = made(name)
    inputs = features(0), features(1)
    labels = tf.constant(np.arange(BATCH) % CLASSES)

    def loss(student):
        reduced = method.reduce(student, method.targets(inputs[1]))
        terms = method.call(*reduced, labels)
        if method.trains_teacher:  # the other term is a constant to it
            return terms[name]
        return total(terms)

    if list(method._flatten_layers(include_self=False)):
        step, tolerance = 3e-3, 2e-2
    else:
        inputs = [
            mapped(lambda a: tf.cast(a, tf.float64), each) for each in inputs
        ]
        step, tolerance = 1e-6, 1e-5
    tensors = used(method, inputs[0])
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = loss(inputs[0])
    assert value.dtype == (tf.float32 if step > 1e-4 else tf.float64)
    gradients = tape.gradient(value, tensors)
    moves = {
        id(tensor): gradient
        for tensor, gradient in zip(tensors, gradients, strict=True)
        if gradient is not None
    }
    square = float(sum(tf.reduce_sum(each**2) for each in moves.values()))

    def moved(length):
        return mapped(
            lambda a: a + length / square**0.5 * moves.get(id(a), 0), inputs[0]
        )

    difference = float(loss(moved(step)) - loss(moved(-step))) / (2 * step)
    np.testing.assert_allclose(difference, square**0.5, rtol=tolerance)


@pytest.mark.parametrize(
    "method",
    [
        *methods.names(),
        *(
            wrapper(method)
            for wrapper in (methods.EAKD, methods.SDD)
            for method in (methods.DKD(), methods.SoftLogits())
        ),
    ],
    ids=str,
)
def test_without_a_label_only_some_methods_teach_nothing(method):
    method = made(method)
    nobody = tf.fill([BATCH], -1)
    terms = called(method, features(0), features(1), nobody)
    assert (float(total(terms)) == 0) == method.needs.labels


def test_refuses_a_negative_weight(name):
    with pytest.raises(ValueError, match="`weight` must be 0 or more.*-0.5"):
        type(methods.get(name))(weight=-0.5)


@pytest.mark.slow
def test_trains_saves_and_loads(name, small_net, task, images, tmp_path):
    x, y = images
    method = methods.get(name)
    if name in ("mhgd", "mhgd_cross"):
        method = type(method)(num_heads=2, preparation_epochs=1)
    if name == "factor_transfer":
        method = methods.FactorTransfer(preparation_epochs=1)
    if name == "crd":
        method = methods.CRD(bank_size=64)
    model = keras_mhgd.Distiller(
        small_net("student"), small_net("teacher"), method
    )
    model.compile(**task())
    if not model.prepared:
        model.prepare(x, y, verbose=0)
    forwards, student_call = [], model.student.layers[1].call
    model.student.layers[1].call = lambda *a, **k: (
        forwards.append(1) or student_call(*a, **k)
    )
    model.train_step((x, y))  # eagerly
    del model.student.layers[1].call
    assert len(forwards) == 1
    history = model.fit(x, y, verbose=0).history
    assert set(method.terms) <= history.keys()
    assert all(np.isfinite(values).all() for values in history.values())
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
