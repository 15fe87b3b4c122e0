"""What networks, labels and data mean: the right number, or a clear word."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness.situations import (
    CLASSES,
    SITUATIONS,
    X,
    crossentropy,
    logit,
    of_classes,
    of_labels,
    predictions,
    softmax,
    vectors,
)
from keras_mhgd import methods
from keras_mhgd.tasks import Task

layers = keras.layers
LOGITS = crossentropy(from_logits=True)


def distiller(student, teacher, method="soft_logits", loss=LOGITS, **options):
    compiled = {
        key: options.pop(key) for key in ("task", "metrics") if key in options
    }
    made = keras_mhgd.Distiller(student, teacher, method, **options)
    made.compile(keras.optimizers.SGD(0.01), loss=loss, **compiled)
    return made


def step(model, *batch):
    """A step without tracing: its losses."""
    batch = keras.tree.map_structure(tf.convert_to_tensor, batch)
    logs = model.train_step(batch)
    return {name: float(value) for name, value in logs.items()}


def both(x, *networks):
    return [predictions(network, x) for network in networks]


def test_an_average_of_probabilities_is_probabilities():
    inputs = keras.Input((6,))
    members = [
        vectors(name, 7, 4, "softmax", seed)
        for seed, name in ((1, "a"), (2, "b"))
    ]
    average = layers.Average()([member(inputs) for member in members])
    teacher = keras.Model(inputs, average, name="average")
    student = vectors("student", 5, 4, "softmax", seed=3)
    method = methods.SoftLogits(temperature=1.0, weight=1.0)
    s, t = map(np.float64, both(X, student, teacher))
    found = step(
        distiller(student, teacher, method, crossentropy()), X, CLASSES
    )
    expected = (t * (np.log(t) - np.log(s))).sum(-1).mean()
    assert found["soft_logits"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["maximum", "code"])
def test_what_cannot_be_told_is_refused(name):
    inputs = keras.Input((6,))
    members = [vectors(each, 7, 4, "softmax") for each in ("a", "b")]
    outputs = [member(inputs) for member in members]
    if name == "maximum":
        last = layers.Maximum()(outputs)
    else:
        last = keras.ops.sqrt(outputs[0] * outputs[1])
    teacher = keras.Model(inputs, last, name="teacher")
    message = "whether a network gives logits or .* the output of the teacher"
    with pytest.raises(ValueError, match=message):
        distiller(vectors("student", 5, 4), teacher)


def test_independent_labels_that_are_all_wrong_have_the_greatest_loss():
    """Teacher all yes, student all no: a softmax would see no difference."""
    student, teacher = (
        vectors(name, 4, 5, "sigmoid") for name in ("student", "teacher")
    )
    for network, bias in ((student, -5.0), (teacher, 5.0)):
        head = network.get_layer("head")
        head.set_weights([np.zeros((4, 5)), np.full(5, bias)])
    expected = of_labels(np.full((8, 5), -5.0), np.full((8, 5), 5.0)).mean()
    assert expected == pytest.approx(11.09, abs=0.01)
    labels = np.ones((8, 5), "float32")
    for method, terms in (("soft_logits", 0.9), ("dkd", 1.0)):
        model = distiller(student, teacher, method, "binary_crossentropy")
        found = step(model, X, labels)
        total = sum(found[term] for term in model.terms)
        assert total == pytest.approx(terms * expected, rel=1e-4)
        head = student.get_layer("head")
        head.set_weights([np.zeros((4, 5)), np.full(5, -5.0)])


def distance(a, b, axis):
    """1 less the mean of Pearson's correlation, which is 0 of constants."""
    a, b = (z - z.mean(axis, keepdims=True) for z in (a, b))
    scale = np.sqrt((a * a).sum(axis) * (b * b).sum(axis))
    varies = scale > 1e-12
    return 1 - ((a * b).sum(axis) * varies / np.where(varies, scale, 1)).mean()


def test_dist_correlates_over_classes_and_over_positions():
    """Predictions of all positions are its rows."""
    situation = SITUATIONS["segmentation"]
    student, teacher = situation.student(), situation.teacher()
    s, t = map(np.float64, both(situation.x, student, teacher))
    there = situation.y != 255
    s, t = s[there], t[there]

    model = distiller(student, teacher, "dist", **situation.task)
    found = step(model, situation.x, situation.y)
    assert found["dist_inter"] == pytest.approx(distance(s, t, 1), rel=1e-4)
    assert found["dist_intra"] == pytest.approx(distance(s, t, 0), rel=1e-4)


def test_dist_of_independent_labels_correlates_their_probabilities():
    situation = SITUATIONS["multi_label"]
    student, teacher = situation.student(), situation.teacher()
    s, t = map(np.float64, both(X, student, teacher))
    model = distiller(student, teacher, "dist", **situation.task)
    found = step(model, X, situation.y)
    for term, axis in (("dist_inter", 1), ("dist_intra", 0)):
        expected = distance(s, t, axis)
        assert found[term] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_dkd_takes_the_label_of_each_position():
    situation = SITUATIONS["segmentation"]
    student, teacher = situation.student(), situation.teacher()
    s, t = (
        np.log(np.float64(each)) / 4
        for each in both(situation.x, student, teacher)
    )
    there = situation.y != 255
    s, t, y = s[there], t[there], situation.y[there]
    parts = []
    for z in (s, t):
        p = softmax(z)
        of_label = np.take_along_axis(p, y[:, None], 1)
        others = np.where(np.arange(4) == y[:, None], -np.inf, z)
        parts.append(
            (np.concatenate([of_label, 1 - of_label], 1), softmax(others))
        )
    expected = []
    for ours, theirs in zip(*parts, strict=True):
        ratio = np.where(theirs > 0, theirs / np.where(ours > 0, ours, 1), 1)
        expected.append(16 * (theirs * np.log(ratio)).sum(-1).mean())
    model = distiller(student, teacher, "dkd", **situation.task)
    found = step(model, situation.x, situation.y)
    assert found["dkd_target"] == pytest.approx(expected[0], rel=1e-4)
    assert found["dkd_non_target"] == pytest.approx(8 * expected[1], rel=1e-4)


def test_values_are_compared_as_values():
    student, teacher = vectors("student", 4, 1), vectors("teacher", 4, 1)
    for network, bias in ((student, 300.0), (teacher, 200.0)):
        network.get_layer("head").set_weights(
            [np.zeros((4, 1)), np.full(1, bias)]
        )
    model = distiller(student, teacher, loss="mse")
    found = step(model, X, np.full((8, 1), 200))  # whole numbers, no classes
    assert found["soft_logits"] == pytest.approx(9000.0)
    assert found["task_loss"] == pytest.approx(10000.0)


def test_methods_of_classes_refuse_values():
    for name in (
        *("dkd", "nkd", "ttm", "wttm", "rld", "mlkd", "ea_kd"),
        "mutual_learning",
    ):
        message = "must get outputs that are single_label or multi_label. Rec"
        with pytest.raises(ValueError, match=message):
            distiller(
                vectors("student", 4, 2), vectors("teacher", 4, 2), name, "mse"
            )


def own_loss(labels, outputs):
    return tf.reduce_mean(tf.square(labels - outputs), axis=-1)


def test_a_loss_of_ones_own_needs_a_word():
    networks = vectors("student", 4, 2), vectors("teacher", 5, 2)
    labels = SITUATIONS["regression"].y
    model = distiller(*networks, loss=own_loss)
    with pytest.raises(ValueError, match="loss='own_loss' .*Pass `task=` to"):
        step(model, X, labels)
    s, t = map(np.float64, both(X, *networks))
    model = distiller(*networks, loss=own_loss, task="regression")
    found = step(model, X, labels)
    expected = 0.9 * ((s - t) ** 2).mean()
    assert found["soft_logits"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="`task` must be one of single_label"):
        distiller(vectors("s", 4, 2), vectors("t", 4, 2), task="classes")


@pytest.mark.parametrize("ignored", [-1, 255])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_the_teacher_teaches_samples_with_the_ignored_class(ignored, dtype):
    labels = CLASSES.copy()
    labels[::2] = ignored
    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    s, t = both(X, student, teacher)
    loss = crossentropy(from_logits=True, ignore_class=ignored)
    found = step(
        distiller(student, teacher, loss=loss), X, labels.astype(dtype)
    )
    of_known = -np.log(softmax(np.float64(s)))[np.arange(8), CLASSES][1::2]
    assert found["task_loss"] == pytest.approx(of_known.mean(), rel=1e-5)
    expected = 0.9 * of_classes(s, t).mean()
    assert found["soft_logits"] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["dkd", "nkd", "rld"])
def test_samples_of_no_weight_need_no_label(name):
    """Their labels may be anything; methods that need one leave them out."""
    weight = np.array([1.0, 0.0] * 4, "float32")
    labels = np.where(weight > 0, CLASSES, -1)
    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    s, t = both(X, student, teacher)
    found = step(distiller(student, teacher), X, labels, weight)
    assert found["soft_logits"] == pytest.approx(
        0.9 * of_classes(s, t).mean(), abs=1e-5
    )
    mine, other = vectors("student", 4, 4), vectors("teacher", 5, 4)
    all_of_them = step(distiller(mine, other, name), X, labels, weight)
    mine, other = vectors("student", 4, 4), vectors("teacher", 5, 4)
    model = distiller(mine, other, name)
    labelled = step(model, X[::2], labels[::2])
    for term in model.terms:
        assert all_of_them[term] == pytest.approx(labelled[term], rel=1e-4)


def test_labels_out_of_range_are_told():
    model = distiller(vectors("student", 4, 4), vectors("teacher", 5, 4))
    message = "class numbers from 0 to 3. Received"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        step(model, X, CLASSES - 1)
    loss = crossentropy(from_logits=True, ignore_class=255)
    model = distiller(
        vectors("student", 4, 4), vectors("teacher", 5, 4), loss=loss
    )
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="3, or 255, which"
    ):
        step(model, X, CLASSES + 7)


def test_labels_of_another_kind_are_refused():
    """Before the first step, by the shapes that the outputs want."""
    model = distiller(vectors("student", 4, 4), vectors("teacher", 5, 4))
    message = "must be class numbers .* a loss of class numbers"
    with pytest.raises(ValueError, match=message):
        step(model, X, np.eye(4, dtype="float32")[CLASSES])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = distiller(
        vectors("student", 4, 4), vectors("teacher", 5, 4), loss=loss
    )
    with pytest.raises(ValueError, match="a loss of one-hot labels"):
        step(model, X, CLASSES)
    model = distiller(
        vectors("student", 4, 5, "sigmoid"),
        vectors("teacher", 5, 5, "sigmoid"),
        loss="binary_crossentropy",
    )
    with pytest.raises(ValueError, match="0 or 1 for each independent output"):
        step(model, X, CLASSES)


@pytest.mark.parametrize(
    ("shape", "told", "sparse"),
    [
        ((None,), None, True),
        ((None, 1), None, True),
        ((None, 4), None, False),
        # What the data doesn't tell refuses nothing that the loss tells.
        ((None, None), True, True),
        ((None, None), False, False),
        (None, True, True),
        (None, False, False),
    ],
)
def test_labels_of_known_and_unknown_sizes(shape, told, sparse):
    sizes = tf.TensorShape(shape), tf.TensorShape([None, 4])
    assert Task(sparse=told)._is_sparse(*sizes) == sparse
    if told is not None:
        with pytest.raises(ValueError, match="must be class numbers"):
            Task()._is_sparse(*sizes)


def test_labels_of_unknown_size_train():
    batches = tf.data.Dataset.from_generator(
        lambda: [(X, np.eye(4, dtype="float32")[CLASSES])] * 2,
        output_signature=(
            tf.TensorSpec((None, 6)),
            tf.TensorSpec((None, None)),
        ),
    )
    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = distiller(student, teacher, ["soft_logits", "dkd"], loss)
    history = model.fit(
        batches, steps_per_epoch=2, verbose=0, shuffle=False
    ).history
    assert all(np.isfinite(each).all() for each in history.values())


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_weights_that_no_loss_reaches_stay_and_are_named(policy, nonfinite):
    keras.config.set_dtype_policy(policy)
    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    model = keras_mhgd.Distiller(student, teacher, "fitnet")
    model.compile(keras.optimizers.SGD(0.1), nonfinite=nonfinite)
    scales = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (policy == "mixed_float16")
    before = {each.path: each.numpy() for each in student.weights}
    told = r"no loss for \['head/kernel', 'head/bias'\], which keep"
    with pytest.warns(UserWarning, match=told):
        model.fit(X, verbose=0, shuffle=False)
    moved = {
        each.path
        for each in student.weights
        if (each.numpy() != before[each.path]).any()
    }
    assert moved == before.keys() - {"head/kernel", "head/bias"}


@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        ("sparse_categorical_crossentropy", None),
        ("binary_crossentropy", None),
        ("kl_divergence", None),
        (keras.losses.CategoricalGeneralizedCrossEntropy(), None),
        (keras.losses.CategoricalFocalCrossentropy(), None),
        (LOGITS, "softmax"),
        (keras.losses.BinaryCrossentropy(from_logits=True), "sigmoid"),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_loss_that_takes_logits_for_probabilities_is_refused(
    loss, activation
):
    """And one that takes probabilities for logits, whatever the method."""
    student, teacher = (
        vectors(name, width, 4, activation)
        for name, width in (("student", 4), ("teacher", 5))
    )
    with pytest.raises(ValueError, match="`loss` must take what the output of"):
        distiller(student, teacher, "fitnet", loss)


def test_a_loss_of_ones_own_takes_what_it_takes():
    class Own(keras.losses.Loss):
        from_logits = False

        def call(self, labels, outputs):
            return tf.reduce_mean(outputs**2, axis=-1)

    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    distiller(student, teacher, "fitnet", Own())


@pytest.mark.parametrize("name", ["dkd", "nkd", "rld"])
def test_methods_that_need_labels(name):
    model = distiller(
        vectors("student", 4, 4), vectors("teacher", 5, 4), name, None
    )
    message = f"{name.upper()} must get labels.*without labels"
    with pytest.raises(ValueError, match=message):
        step(model, X)


def test_shared_layers_are_refused():
    inputs = keras.Input((6,))
    hidden = layers.Dense(4, name="shared")(inputs)
    teacher = keras.Model(inputs, layers.Dense(3, name="deep")(hidden))
    student = keras.Model(inputs, layers.Dense(3, name="exit")(hidden))
    message = r"must not share weights that train.*\['shared/bias'"
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(student, teacher, "soft_logits")
    student.get_layer("shared").trainable = False
    before = predictions(teacher, X)
    step(distiller(student, teacher), X, CLASSES % 3)
    np.testing.assert_array_equal(predictions(teacher, X), before)


def test_a_quantized_student_is_refused_unless_it_has_lora():
    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    for layer in ("stage1", "stage2", "head"):
        student.get_layer(layer).quantize("int8")
    message = r"weights that train. Received: \['stage1', 'stage2', 'head'\]"
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(student, teacher)
    for layer in ("stage1", "stage2", "head"):
        student.get_layer(layer).enable_lora(2)
    before = [each.numpy() for each in student.variables]
    step(distiller(student, teacher), X, CLASSES)
    moved = {
        variable.path.split("/")[-1]
        for variable, old in zip(student.variables, before, strict=True)
        if (variable.numpy() != old).any()
    }
    assert "lora_kernel_b" in moved
    assert not {"kernel", "kernel_scale"} & moved


def test_a_student_without_weights_to_train_is_refused():
    student = vectors("student", 4, 4)
    student.trainable = False
    with pytest.raises(ValueError, match="`student` must have weights that tr"):
        keras_mhgd.Distiller(student, vectors("teacher", 5, 4))


def flipping(name, late):
    """A network that starts with a random layer, or has one further on."""
    x = inputs = keras.Input((8, 8, 1))
    if late:
        x = layers.Rescaling(2.0)(x)
    x = layers.RandomTranslation(0.5, 0.5, name="shift")(x)
    x = layers.Conv2D(4, 3, name="stage1")(x)
    outputs = layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, outputs, name=name)


def test_augmentation_of_the_student_goes_before_both_networks(bars):
    """Equal networks that see one view give the same: no loss."""
    student, teacher = flipping("student", False), flipping("teacher", False)
    teacher.set_weights(student.get_weights())
    model = distiller(student, teacher, "fitnet", sensing_points=["stage1"])
    images = SITUATIONS["segmentation"].x
    before = predictions(student, images)
    found = step(model, images, CLASSES % 3)
    assert found["fitnet"] == pytest.approx(0.0, abs=1e-9)
    assert (predictions(student, images) != before).any()
    with pytest.raises(ValueError, match="student that does not augment: eac"):
        keras_mhgd.TeacherCache(model, bars, batch_size=8, views=1)


def test_random_layers_that_the_teacher_does_not_see_are_told():
    student, teacher = flipping("student", True), flipping("teacher", True)
    with pytest.warns(UserWarning, match=r"same view.*\['shift'\], which only"):
        keras_mhgd.Distiller(student, teacher, "soft_logits")


@pytest.mark.slow
def test_data_that_is_gone_through_once():
    def batches():
        while True:
            taken.append(1)
            yield X, CLASSES

    taken = []
    model = distiller(
        vectors("student", 4, 4),
        vectors("teacher", 5, 4),
        methods.MHGD(preparation_epochs=1),
    )
    with pytest.raises(ValueError, match="gone through again.*type generator"):
        model.fit(batches(), steps_per_epoch=2, shuffle=False, verbose=0)
    assert not taken
    model.prepare(X, CLASSES, verbose=0)
    model.fit(batches(), steps_per_epoch=2, shuffle=False, verbose=0)
    assert taken


def test_methods_of_one_kind_have_terms_of_their_own():
    """As the tests of keras.distillation combine them."""
    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    s, t = both(X, student, teacher)
    divergence = keras.losses.KLDivergence
    logits = keras.distillation.LogitsDistillation
    model = distiller(
        student,
        teacher,
        [logits(4.0, divergence()), logits(2.0, divergence()), "soft_logits"],
    )
    found = step(model, X, CLASSES)
    assert model.terms == (
        "logits_distillation",
        "logits_distillation_2",
        "soft_logits",
    )
    expected = of_classes(s, t).mean()
    assert found["logits_distillation"] == pytest.approx(expected, rel=1e-3)
    expected = of_classes(2 * s, 2 * t).mean() / 4
    assert found["logits_distillation_2"] == pytest.approx(expected, rel=1e-3)


def test_a_method_for_each_output():
    situation = SITUATIONS["two_heads"]
    model = distiller(
        situation.student(),
        situation.teacher(),
        {"kind": "dkd+dist", "size": methods.SoftLogits(weight=1.0)},
        **situation.task,
    )
    s, t = both(X, model.student, model.teacher)
    found = step(model, situation.x, situation.y)
    assert {"dkd_target_kind", "dist_inter_kind"} <= set(found)
    expected = np.square(s["size"] - t["size"]).mean()
    assert found["soft_logits_size"] == pytest.approx(expected, rel=1e-5)
    assert not any(name.startswith("dkd_target_size") for name in found)
    with pytest.raises(ValueError, match=r"like them, \['kind', 'size'\]. Rec"):
        distiller(
            situation.student(), situation.teacher(), {"other": "dkd"}, None
        )


def test_methods_by_output_need_several_outputs():
    message = r"for networks with one output. .* outputs \['kind'\]"
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(
            vectors("s", 4, 3), vectors("t", 4, 3), {"kind": "dkd"}
        )


def test_networks_of_other_outputs_are_refused():
    one, two = (
        vectors("s", 4, {"a": 3, "b": 2}),
        vectors("t", 4, {"a": 3, "c": 2}),
    )
    with pytest.raises(ValueError, match="must have the same outputs.*'c'"):
        keras_mhgd.Distiller(one, two, "soft_logits")
    with pytest.raises(ValueError, match="must have the same outputs"):
        keras_mhgd.Distiller(one, vectors("t", 4, 3), "soft_logits")
    message = r"trains it along. Received: 1 teacher\(s\) with 2 output\(s\)"
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(
            one, vectors("t", 4, {"a": 3, "b": 2}), "mutual_learning"
        )


def test_several_teachers_are_weighted():
    student = vectors("student", 4, 5, "sigmoid")
    teachers = [
        vectors(n, 5, 5, "sigmoid", seed) for seed, n in ((5, "a"), (6, "b"))
    ]
    s, a, b = map(np.float64, both(X, student, *teachers))
    model = distiller(
        student,
        teachers,
        ["soft_logits", "fitnet"],
        "binary_crossentropy",
        teacher_weights=[3.0, 1.0],
    )
    found = step(model, X, np.ones((8, 5), "float32"))
    average = 0.75 * a + 0.25 * b
    expected = 0.9 * of_labels(logit(s), logit(average)).mean()
    assert found["soft_logits"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert {"fitnet_0", "fitnet_1"} <= set(found)
    with pytest.raises(ValueError, match="positive number for each teacher. R"):
        distiller(student, teachers, teacher_weights=[1.0])


def test_each_teacher_has_terms_of_its_own_on_maps():
    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    alone = step(distiller(student, teacher, "fitnet"), X, CLASSES)
    student = vectors("student", 4, 4)
    other = vectors("other", 6, 4, seed=4)
    model = distiller(student, [teacher, other], "fitnet")
    # The projections of the first are drawn as they were alone.
    single = distiller(vectors("student", 4, 4), teacher, "fitnet")
    model.methods[0].set_weights(single.methods[0].get_weights())
    assert np.isfinite(alone["fitnet"])
    expected = step(single, X, CLASSES)["fitnet"] / 2
    found = step(model, X, CLASSES)
    assert found["fitnet_0"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_cache_holds_what_each_teacher_gives(bars, small_net):
    def made():
        model = keras_mhgd.Distiller(
            small_net("student"),
            [small_net("one"), small_net("two", widths=(5, 7))],
            ["kd_svdf", "soft_logits"],
        )
        model.compile(keras.optimizers.SGD(0.01), LOGITS)
        return model

    keras.utils.set_random_seed(1)
    plain = made()
    cached = made()
    cached.set_weights(plain.get_weights())
    for model in (plain, cached):
        for mine, theirs in zip(model.teachers, plain.teachers, strict=True):
            mine.set_weights(theirs.get_weights())
    cache = keras_mhgd.TeacherCache(cached, bars, batch_size=16, views=1)
    options = {
        "epochs": 1,
        "steps_per_epoch": 2,
        "shuffle": False,
        "verbose": 0,
    }
    live = plain.fit(bars.train(batch_size=16, views=1), **options).history
    found = cached.fit(cache.train(), **options).history
    for name in live:
        np.testing.assert_allclose(found[name], live[name], rtol=1e-5)


def test_evaluate_needs_labels():
    model = distiller(vectors("student", 4, 4), vectors("teacher", 5, 4))
    with pytest.raises(ValueError, match="`evaluate` must get labels"):
        model.evaluate(X, verbose=0)


def test_metrics_are_there_where_labels_are():
    model = distiller(
        vectors("student", 4, 4),
        vectors("teacher", 5, 4),
        loss=None,
        metrics=["accuracy"],
    )
    history = model.fit(X, verbose=0, validation_data=(X, CLASSES)).history
    assert set(history) == {"loss", "soft_logits", "task_loss", "val_accuracy"}
    accuracy = (predictions(model.student, X).argmax(-1) == CLASSES).mean()
    assert history["val_accuracy"][0] == pytest.approx(accuracy)


def test_the_teacher_sees_its_own_inputs():
    """Another order of keys, other names, another size, other values."""

    def network(name, names, seed):
        keras.utils.set_random_seed(seed)
        inputs = {each: keras.Input((3,), name=each) for each in names}
        a, b = inputs.values()
        x = layers.Dense(4, "tanh")(a - 2 * b)
        return keras.Model(inputs, layers.Dense(4)(x), name=name)

    x = {"a": X[:, :3], "b": X[:, 3:]}
    student = network("student", ("a", "b"), 1)
    for names in (("a", "b"), ("b", "a"), ("z", "b")):
        teacher = network("teacher", names, 2)
        its = {names[0] if names[0] != "z" else "z": x["a"], names[1]: x["b"]}
        if names == ("b", "a"):
            its = x
        s, t = predictions(student, x), predictions(teacher, its)
        student_copy = keras.models.clone_model(student)
        student_copy.set_weights(student.get_weights())
        found = step(distiller(student_copy, teacher), x, CLASSES)
        expected = 0.9 * of_classes(s, t).mean()
        assert found["soft_logits"] == pytest.approx(expected, abs=1e-5)


def test_a_preprocessor_makes_the_view_of_a_network(tmp_path):
    student, teacher = vectors("student", 4, 4), vectors("teacher", 5, 4)
    rescaling = layers.Rescaling(2.0, -1.0)
    model = distiller(student, teacher, teacher_preprocessor=rescaling)
    s, t = predictions(student, X), predictions(teacher, 2 * X - 1)
    model.save(tmp_path / "run.keras")
    found = step(model, X, CLASSES)
    expected = 0.9 * of_classes(s, t).mean()
    assert found["soft_logits"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert step(loaded, X, CLASSES) == pytest.approx(found)
    model = distiller(student, teacher, student_preprocessor=rescaling)
    np.testing.assert_allclose(
        model.predict(X, verbose=0), predictions(student, 2 * X - 1), atol=1e-6
    )


def test_a_network_of_any_size_beside_one_of_a_fixed_size():
    def network(name, width, size, seed):
        keras.utils.set_random_seed(seed)
        x = inputs = keras.Input((size, size, 1))
        for stage in (1, 2):
            x = layers.Conv2D(
                width, 3, stage, padding="same", name=f"stage{stage}"
            )(x)
        x = layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, layers.Dense(4)(x), name=name)

    images = SITUATIONS["segmentation"].x
    for sizes in ((None, 8), (8, None)):
        student = network("student", 4, sizes[0], 1)
        teacher = network("teacher", 5, sizes[1], 2)
        s, t = both(images, student, teacher)
        model = distiller(student, teacher, ["soft_logits", "review_kd"])
        assert len(model.sensing_points) == 2
        found = step(model, images, CLASSES)
        expected = 0.9 * of_classes(s, t).mean()
        assert found["soft_logits"] == pytest.approx(
            expected, rel=1e-4, abs=1e-5
        )
