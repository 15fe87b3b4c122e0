import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.linalg.directions import unit
from keras_mhgd.methods.crd import CRD, contrastive_loss, log_mean_score

LN2, LN3 = np.log(2), np.log(3)


def features(embedding):
    return Features(None, [], embedding=tf.constant(embedding))


def random(seed, batch=4, width=5):
    rng = np.random.default_rng(seed)
    return features(rng.normal(size=(batch, width)).astype("float32"))


def built(student_width=5, teacher_width=5, **arguments):
    keras.utils.set_random_seed(0)
    method = CRD(**{"embedding_size": 3, "bank_size": 6, **arguments})
    method.build(
        Features(None, [], embedding=(None, student_width)),
        Features(None, [], embedding=(None, teacher_width)),
    )
    return method


def with_identity(**arguments):
    """A method whose dense layers change nothing: two dimensions."""
    method = built(2, 2, embedding_size=2, **arguments)
    for side in (method.student_side, method.teacher_side):
        side.dense.kernel.assign(np.eye(2))
    return method


def gradients(method, student, teacher, labels=None):
    values = [variable.value for variable in method.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(student.embedding)
        loss = method.call(student, teacher, labels)["crd"]
    return loss, *tape.gradient(loss, [student.embedding, values])


@pytest.mark.parametrize("step", [1, 2])
def test_published_numbers(golden, close, step):
    """Z is of step 1; a negative that was drawn twice counts twice."""
    stored = golden("mdist_crd")
    suffix = "" if step == 1 else "_step2"
    student, teacher = (
        tf.constant(stored[f"in/{of}{suffix}"]) for of in ("student", "teacher")
    )
    names = [
        f"var/embed_{side}/linear/{part}"
        for side in "st"
        for part in ("kernel", "bias")
    ]
    weights = [tf.constant(stored[name]) for name in names]
    memories = [stored[f"step{step}/memory_v{i}_before"] for i in (1, 2)]
    own, drawn = stored["in/idx"], stored["in/neg" if step == 1 else "in/neg2"]
    counts = np.zeros((len(own), int(stored["in/n"])))
    np.add.at(counts, (np.arange(len(own))[:, np.newaxis], drawn), 1)
    counts = tf.constant(counts, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([student, *weights])
        s = unit(student @ weights[0] + weights[1])
        t = unit(teacher @ weights[2] + weights[3])
        loss = 0.0
        for anchors, memory, key in (
            (s, memories[1], "Z_v1"),
            (t, memories[0], "Z_v2"),
        ):
            arguments = anchors, memory[own], memory, counts
            log_z = np.log(stored[f"step1/{key}"] / stored["in/n"])
            if step == 1:
                found = log_mean_score(*arguments)
                assert float(found) == pytest.approx(log_z, rel=1e-5)
                log_z = found
            loss += contrastive_loss(*arguments, log_z)
    expected = float(stored[f"step{step}/loss"])
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    found = tape.gradient(loss, [student, *weights])
    close(found[0], stored[f"step{step}/grad/student"], 1e-3)
    for name, gradient in zip(names, found[1:], strict=True):
        close(gradient, stored[f"step{step}/grad/{name}"], 1e-3)


def test_hand_value():
    """Temperature 1 / ln 3, Z = 1: r of products 1, 0, -1 is 3, 1, 1/3.

    First anchor: K = 3 of a negative that counts once, r = 1, and one that
    counts twice, r = 1/3: h = 3 / (3 + 3) of the positive; 1 - h = 3 / 4 and
    9 / 10, twice. Second: K = 1: h = 3 / 4, and 1 - h = 1 / (1 + 3). Third:
    none. With Z = 3 and K = 1, r = 1 and 1 for the second: h = 1 - h = 1/2.
    """
    anchors = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    negatives = [[0.0, 1.0], [-1.0, 0.0]]
    counts = [[1, 2], [1, 0], [0, 0]]
    found = contrastive_loss(
        anchors, anchors, negatives, counts, 0.0, temperature=1 / LN3
    )
    first = np.log(2) + np.log(4 / 3) + 2 * np.log(10 / 9)
    second = np.log(4 / 3) + np.log(4)
    assert float(found) == pytest.approx((first + second) / 3, rel=1e-6)
    found = contrastive_loss(
        anchors[1:2], anchors[1:2], negatives, counts[1:2], LN3, 1 / LN3
    )
    assert float(found) == pytest.approx(2 * LN2, rel=1e-6)


def test_hand_value_of_the_partition():
    """Scores 3, 1, 1/3 and 1/3; then 3, 3: the mean of 32/3 is 16/9."""
    anchors = [[1.0, 0.0], [0.0, 1.0]]
    negatives = [[0.0, 1.0], [-1.0, 0.0]]
    counts = [[True, False], [True, False]]
    arguments = anchors, anchors, negatives
    found = log_mean_score(*arguments, [[1, 2], [1, 0]], 1 / LN3)
    assert float(found) == pytest.approx(np.log(32 / 3 / 6), rel=1e-6)
    # Positives 3 and 3, negatives 1 and 3.
    found = log_mean_score(*arguments, counts, 1 / LN3)
    assert float(found) == pytest.approx(np.log(10 / 4), rel=1e-6)


def test_gradient():
    rng = np.random.default_rng(0)
    tensors = [tf.constant(rng.normal(size=(rows, 5))) for rows in (3, 3, 4)]
    counts = rng.integers(0, 3, size=(3, 4))
    step = rng.normal(size=(3, 5))

    def loss(anchors, positives, negatives):
        return contrastive_loss(anchors, positives, negatives, counts, 0.3, 0.5)

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        found = loss(*tensors)
    assert found.dtype == "float64"
    gradient, *of_constants = tape.gradient(found, tensors)
    assert of_constants == [None, None]
    ahead, behind = (
        loss(tensors[0] + sign * 1e-5 * step, *tensors[1:]) for sign in (1, -1)
    )
    slope = float(ahead - behind) / 2e-5
    assert np.sum(gradient * step) == pytest.approx(slope, rel=1e-8)


LABELS = [
    np.array([0, 1, 0]),
    np.array([[0], [1], [0]]),
    np.array([0.0, 1.0, 0.0], "float32"),
    np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], "float32"),
]


@pytest.mark.parametrize("labels", LABELS, ids=["flat", "column", "float", "1"])
def test_hand_value_of_the_method(labels):
    """Images a, b, c of classes 0, 1, 0 at 0, 90 and 180 degrees.

    Temperature 1 / ln 3: scores 3, 1 and 1/3. Both networks are equal, so
    their losses are. Negatives: b of a and of c, a and c of b; all score 1.
    Z, the mean of three positives' 3 and four 1, is 13/7. With z = 3 / Z and
    u = 1 / Z: a and c give log((z + 1) / z) + log(u + 1); b gives
    log((z + 2) / z) + 2 log((u + 2) / 2).
    """
    method = with_identity(temperature=1 / LN3)
    both = features([[2.0, 0.0], [0.0, 3.0], [-0.5, 0.0]])
    z, u = 21 / 13, 7 / 13
    a = np.log((z + 1) / z) + np.log(u + 1)
    b = np.log((z + 2) / z) + 2 * np.log((u + 2) / 2)
    expected = 0.8 * 2 * (2 * a + b) / 3
    found = method.call(both, both, labels)["crd"]
    assert float(found) == pytest.approx(expected, rel=1e-5)
    # What the bank has of class 1 comes to a and c, of class 0 to b.
    method.update(both, both, labels)
    a += np.log((u + 2) / 2) * 2 - np.log(u + 1)
    a += np.log((z + 2) / z) - np.log((z + 1) / z)
    b = np.log((z + 4) / z) + 4 * np.log((u + 4) / 4)
    expected = 0.8 * 2 * (2 * a + b) / 3
    found = method.call(both, both, labels)["crd"]
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("labels", [None, np.zeros((3, 2, 2), "int32")])
def test_without_classes_all_others_are_negatives(labels):
    """As of three classes, but an image repels itself in the bank too."""
    method, other = (with_identity(temperature=1.0) for _ in range(2))
    both = features([[2.0, 0.0], [0.0, 3.0], [-0.5, 0.0]])
    for last in (np.array([0, 1, 2]), np.array([3, 4, 5])):
        found = method.call(both, both, labels)["crd"]
        expected = other.call(both, both, last)["crd"]
        assert float(found) == pytest.approx(float(expected), rel=1e-6)
        method.update(both, both, labels)
        other.update(both, both, last)


def test_bank_keeps_the_latest():
    """Six places: 4 and 1 images leave one empty, 3 push out 2, and 8 all."""
    method = built()
    side = method.teacher_side
    batches = [random(i, batch) for i, batch in enumerate([4, 1, 3, 8])]
    seen, classes = np.zeros((6, 3)), np.full(6, -2)
    for i, batch in enumerate(batches):
        labels = np.arange(len(batch.embedding)) + 10 * i
        method.update(random(9, len(labels)), batch, labels)
        seen = np.concatenate([seen, side(batch.embedding)])[-6:]
        classes = np.concatenate([classes, labels])[-6:]
        np.testing.assert_allclose(side.bank, seen, atol=1e-6)
        np.testing.assert_array_equal(method.bank_classes, classes)
        assert side.bank.shape == (6, 3)
    np.testing.assert_allclose(
        method.student_side.bank,
        method.student_side(random(9, 8).embedding)[-6:],
        atol=1e-6,
    )


def test_partition_is_the_first_batchs_own():
    method = built()
    sides = method.student_side, method.teacher_side
    first = random(0), random(1)
    before = float(method.call(*first, None)["crd"])
    assert [float(side.log_partition) for side in sides] == [0, 0]
    method.update(*first, None)
    known = [float(side.log_partition) for side in sides]
    assert all(np.isfinite(known)) and 0 not in known
    method.update(random(2), random(3), None)
    assert [float(side.log_partition) for side in sides] == known
    # Anew, with an empty bank: the estimate was what is known now.
    again = built()
    for side, value in zip(
        (again.student_side, again.teacher_side), known, strict=True
    ):
        side.log_partition.assign(value)
    assert float(again.call(*first, None)["crd"]) == pytest.approx(before)


def test_call_changes_nothing():
    method = built()
    method.update(random(0), random(1), None)
    before = [weight.numpy() for weight in method.weights]
    method.call(random(2), random(3), None)
    for weight, value in zip(method.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_both_heads_train_and_the_teacher_does_not():
    method, teacher = built(teacher_width=7), random(1, width=7)
    with tf.GradientTape() as tape:
        tape.watch(teacher.embedding)
        loss = method.call(random(0), teacher, None)["crd"]
    assert tape.gradient(loss, teacher.embedding) is None
    _, of_student, of_weights = gradients(method, random(0), teacher)
    assert len(of_weights) == 4
    for gradient in (of_student, *of_weights):
        assert np.abs(gradient).max() > 1e-4


@pytest.mark.slow
def test_training_brings_pairs_together():
    """Ten teachers' rows, and a student that learns them by its dense layer."""
    method = built(5, 5, embedding_size=8, bank_size=20, temperature=0.2)
    student, teacher = random(0, 10), random(1, 10)
    student = features(teacher.embedding @ np.eye(5)[::-1].astype("float32"))
    optimizer = keras.optimizers.Adam(0.05)
    variables = method.trainable_variables
    for _ in range(60):
        with tf.GradientTape() as tape:
            loss = method.call(student, teacher, np.arange(10))["crd"]
        optimizer.apply(
            tape.gradient(loss, [each.value for each in variables]), variables
        )
        method.update(student, teacher, np.arange(10))
    s, t = (
        side(of.embedding).numpy()
        for side, of in (
            (method.student_side, student),
            (method.teacher_side, teacher),
        )
    )
    np.testing.assert_array_equal(np.argmax(s @ t.T, axis=1), np.arange(10))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [0.0, 1.0, 6e4, None])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("temperature", [0.07, 0.005])
def test_finite(dtype, value, batch, temperature):
    method = built(temperature=temperature)
    student, teacher = random(0, batch), random(1, batch)
    if value is not None:
        student, teacher = features(np.full((batch, 5), value)), teacher
    student, teacher = (
        features(tf.cast(each.embedding, dtype)) for each in (student, teacher)
    )
    for labels in (None, np.zeros(batch, int), np.arange(batch)):
        loss, *found = gradients(method, student, teacher, labels)
        assert loss.dtype == "float32"
        assert np.isfinite(loss)
        assert found[0].dtype == dtype
        for gradient in tf.nest.flatten(found):
            assert np.isfinite(tf.cast(gradient, "float32")).all()
        method.update(student, teacher, labels)
    for weight in method.weights:
        assert np.isfinite(weight).all()


def test_no_negatives_no_loss():
    method = built()
    loss, of_student, _ = gradients(method, random(0, 1), random(1, 1))
    assert float(loss) == 0
    np.testing.assert_array_equal(of_student, 0)


@pytest.mark.slow
def test_compiles_with_xla_for_any_batch_size():
    student, teacher = random(0), random(1)
    labels = tf.constant([0, 1, 2, 0])
    found = []
    for compiled in (True, False):
        method = built()

        @tf.function(
            jit_compile=compiled,
            input_signature=[
                tf.TensorSpec((None, 5)),
                tf.TensorSpec((None, 5)),
                tf.TensorSpec((None,), tf.int32),
            ],
        )
        def step(s, t, y, method=method):
            s = Features(None, [], embedding=s)
            t = Features(None, [], embedding=t)
            loss = method.call(s, t, y)["crd"]
            method.update(s, t, y)
            return loss

        for rows in (4, 3, 4):
            found.append(
                step(
                    student.embedding[:rows],
                    teacher.embedding[:rows],
                    labels[:rows],
                )
            )
    np.testing.assert_allclose(found[:3], found[3:], rtol=1e-5)


@pytest.mark.slow
def test_trains_saves_and_loads(distiller, images, tmp_path):
    method = CRD(embedding_size=4, bank_size=24)
    model = distiller(method)
    x, y = images
    history = model.fit(x, y, batch_size=12, epochs=2, verbose=0).history
    assert np.isfinite(history["crd"]).all()
    assert set(method.bank_classes.numpy()) == {0, 1, 2}
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    for side in ("student_side", "teacher_side"):
        before, after = getattr(method, side), getattr(loaded.methods[0], side)
        assert np.abs(before.bank).max() > 0
        assert float(before.log_partition) != 0
        for a, b in zip(before.weights, after.weights, strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        method.bank_classes, loaded.methods[0].bank_classes
    )


@pytest.mark.parametrize("name", ["embedding_size", "bank_size", "temperature"])
def test_wrong_arguments(name):
    message = f"`{name}` must be positive. Received: {name}=0"
    with pytest.raises(ValueError, match=message):
        CRD(**{name: 0})


def test_config_round_trip():
    config = CRD(64, 4096, 0.1, weight=1.5).get_config()
    assert CRD.from_config(config).get_config() == config
    assert (config["embedding_size"], config["bank_size"]) == (64, 4096)
    assert (config["temperature"], config["weight"]) == (0.1, 1.5)
