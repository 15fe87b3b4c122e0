import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from keras_mhgd.methods import Method, Needs


class Plain(Method):
    """Adds nothing: what remains is the student's own training."""

    terms = ("nothing",)

    def call(self, student, teacher, labels):
        return {"nothing": tf.constant(0.0)}


class Match(Method):
    """Pulls the student's outputs to the teacher's."""

    terms = ("match",)
    needs = Needs(outputs=True)

    def call(self, student, teacher, labels):
        error = tf.reduce_mean((student.outputs - teacher.outputs) ** 2)
        return {"match": self.weight * error}


def weights(model):
    return [value.copy() for value in model.get_weights()]


def assert_equal(found, expected, tolerance=0.0):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def plain_student(small_net, task, fit, dropout=0.0, **changes):
    """Weights and history of the student trained by plain Keras."""
    keras.utils.set_random_seed(1)
    student = small_net("student", dropout=dropout)
    student.compile(**task(**changes))
    keras.utils.set_random_seed(2)
    history = student.fit(**fit, verbose=0)
    return weights(student), history.history


def distilled_student(small_net, distiller, fit, dropout=0.0, **changes):
    keras.utils.set_random_seed(1)
    student = small_net("student", dropout=dropout)
    model = distiller(Plain(), student=student, **changes)
    keras.utils.set_random_seed(2)
    history = model.fit(**fit, verbose=0)
    return weights(student), history.history


@pytest.mark.slow
@pytest.mark.parametrize(
    "fit",
    [
        {},
        {"sample_weight": np.linspace(0, 2, 32)},
        {"class_weight": {0: 1.0, 1: 3.0, 2: 0.1}},
    ],
    ids=["plain", "sample_weight", "class_weight"],
)
def test_without_a_transfer_it_is_plain_keras(
    small_net, distiller, task, images, fit
):
    x, y = images
    fit = {
        "x": x,
        "y": y,
        "batch_size": 12,
        "epochs": 2,
        "shuffle": False,
        "validation_data": (x, y),
        **fit,
    }
    expected, plain = plain_student(small_net, task, fit)
    found, history = distilled_student(small_net, distiller, fit)
    assert_equal(found, expected, 1e-6)
    for name, values in plain.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-5)
    assert set(history) - set(plain) == {"task_loss", "nothing"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"run_eagerly": True},
        {"steps_per_execution": 3},
        {"jit_compile": False},
        {"weighted_metrics": ["accuracy"], "metrics": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_options_of_compile(small_net, distiller, task, images, changes):
    x, y = images
    fit = {"x": x, "y": y, "batch_size": 12, "epochs": 2, "shuffle": False}
    expected, plain = plain_student(small_net, task, fit)
    found, history = distilled_student(small_net, distiller, fit, **changes)
    assert_equal(found, expected, 1e-5)
    np.testing.assert_allclose(history["loss"], plain["loss"], rtol=1e-4)


@pytest.mark.slow
def test_xla_where_the_method_can(small_net, distiller, task, images):
    x, y = images
    fit = {"x": x, "y": y, "batch_size": 16, "epochs": 2, "shuffle": False}
    expected, _ = plain_student(small_net, task, fit)
    found, _ = distilled_student(small_net, distiller, fit, jit_compile=True)
    assert_equal(found, expected, 1e-4)


def test_regularisation_losses_count(small_net, distiller, images):
    x, y = images
    student = small_net("student", regularizer=keras.regularizers.L2(0.1))
    model = distiller(Match(weight=2.0), student=student)
    model.optimizer.learning_rate = 0.0
    logs = model.fit(x, y, batch_size=32, verbose=0).history
    kernel = student.get_layer("logits").kernel.numpy()
    decay = 0.1 * (kernel**2).sum()
    assert decay > 0.01
    total = logs["task_loss"][0] + logs["match"][0] + decay
    assert logs["loss"][0] == pytest.approx(total, rel=1e-5)
    evaluated = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(evaluated) == {"loss", "accuracy"}
    task = float(model.loss(y, student(x)))
    assert evaluated["loss"] == pytest.approx(task + decay, rel=1e-5)


def test_terms_are_weighted_by_batch_size(small_net, distiller, images):
    """Batches of 30 and 2 samples: the mean over samples, not over batches."""
    x, y = images
    model = distiller(Match())
    model.optimizer.learning_rate = 0.0
    found = model.fit(x, y, batch_size=30, shuffle=False, verbose=0).history

    def of(part):
        student = model.student(x[part], training=True)
        teacher = model.teacher(x[part])
        loss = model.loss(y[part], student)
        return float(loss), float(tf.reduce_mean((student - teacher) ** 2))

    first, last = of(slice(0, 30)), of(slice(30, 32))
    for index, name in enumerate(("task_loss", "match")):
        expected = (30 * first[index] + 2 * last[index]) / 32
        assert found[name][0] == pytest.approx(expected, rel=1e-4)


class Counter(keras.layers.Layer):
    """Counts the samples that pass, wherever it stands in a network."""

    def build(self, shape):
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return inputs


def counted(small_net, name):
    inner = small_net(name + "_inner")
    counter = Counter()
    inputs = keras.Input((8, 8, 1))
    net = keras.Model(inputs, inner(counter(inputs)), name=name)
    return net, counter


@pytest.mark.slow
def test_one_forward_of_each_network_a_step(small_net, task, images):
    x, y = images
    student, student_counter = counted(small_net, "student")
    teacher, teacher_counter = counted(small_net, "teacher")
    points = [
        (f"student_inner/stage{i}", f"teacher_inner/stage{i}") for i in (1, 2)
    ]
    mhan = keras_mhgd.graph.MHAN([6, 8], num_heads=2)
    model = keras_mhgd.Distiller(
        student, teacher, methods.MHGD(mhan=mhan), points
    )
    model.compile(**task())
    for counter in (student_counter, teacher_counter):
        counter.calls.assign(0.0)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert student_counter.calls.numpy() == 8
    assert teacher_counter.calls.numpy() == 8
    model.evaluate(x, y, batch_size=8, verbose=0)
    model.predict(x, batch_size=8, verbose=0)
    assert student_counter.calls.numpy() == 16
    assert teacher_counter.calls.numpy() == 8


@pytest.mark.slow
def test_evaluate_and_predict_are_the_students(distiller, images):
    x, y = images
    model = distiller()
    model.fit(x, y, verbose=0)
    before = weights(model)
    loss, accuracy = model.evaluate(x, y, verbose=0)
    student = model.student
    student.compile(loss=model.loss, metrics=["accuracy"])
    np.testing.assert_allclose(
        [loss, accuracy], student.evaluate(x, y, verbose=0), rtol=1e-6
    )
    np.testing.assert_allclose(
        model.predict(x, verbose=0), student.predict(x, verbose=0), rtol=1e-6
    )
    assert_equal(weights(model), before)


@pytest.mark.slow
def test_the_teacher_stays_as_it_is(small_net, distiller, images):
    x, y = images
    teacher = small_net("teacher", dropout=0.5)
    model = distiller(teacher=teacher)
    before = weights(teacher)
    trainable = [layer.trainable for layer in teacher.layers]
    model.fit(x, y, epochs=2, verbose=0)
    assert_equal(weights(teacher), before)
    assert [layer.trainable for layer in teacher.layers] == trainable
    assert all(trainable)


@pytest.mark.slow
def test_fit_prepares_once_and_learns(distiller, images, capsys):
    x, y = images
    model = distiller(methods.MHGD(num_heads=2, preparation_epochs=2))
    assert not model.prepared
    history = model.fit(x, y, batch_size=16, epochs=8, verbose=2).history
    assert "Preparing MHGD on 'teacher'." in capsys.readouterr().out
    assert model.prepared
    assert set(history) == {"loss", "task_loss", "mhgd", "accuracy"}
    assert history["task_loss"][-1] < history["task_loss"][0]
    mhan = weights(model.methods[0].mhan)
    model.fit(x, y, batch_size=16, verbose=2)
    assert "Preparing" not in capsys.readouterr().out
    assert_equal(weights(model.methods[0].mhan), mhan)


@pytest.mark.slow
def test_the_transfer_moves_the_students_graphs(distiller, images):
    x, y = images
    model = distiller(
        methods.MHGD(num_heads=2, preparation_epochs=5, clip_bound=5.0)
    )
    history = model.fit(x, y, batch_size=32, epochs=30, verbose=0).history
    assert history["mhgd"][-1] < 0.5 * history["mhgd"][0]


@pytest.mark.slow
def test_a_step_is_traced_once(distiller, images):
    x, y = images
    model = distiller(methods.MHGD(num_heads=2, preparation_epochs=1))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    traces = []
    step = model.train_step

    def traced(data):
        traces.append(1)  # runs while a step is traced, not when it is run
        return step(data)

    model.train_step = traced
    model.fit(data, epochs=1, shuffle=False, verbose=0)
    model.fit(data, epochs=3, shuffle=False, verbose=0)
    assert len(traces) == 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize(
    "clipping", ["per_variable", "per_feature", "formula", None]
)
def test_mixed_precision(small_net, distiller, images, policy, clipping):
    x, y = images
    keras.config.set_dtype_policy(policy)
    model = distiller(
        methods.MHGD(num_heads=2, preparation_epochs=2, clipping=clipping)
    )
    history = model.fit(x, y, batch_size=16, epochs=6, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["task_loss"][-1] < history["task_loss"][0]
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (
        policy == "mixed_float16"
    )


def test_fit_keeps_the_optimizers_variables(distiller, images):
    """A loss scale's too: building it anew would make others."""
    keras.config.set_dtype_policy("mixed_float16")
    model = distiller(Plain())
    model.fit(*images, verbose=0)
    variables = model.optimizer.variables
    scale = model.optimizer.dynamic_scale
    model.fit(*images, verbose=0)
    assert [*map(id, variables)] == [*map(id, model.optimizer.variables)]
    assert model.optimizer.dynamic_scale is scale


@pytest.mark.slow
def test_loss_scale_does_not_change_the_update(small_net, task, images):
    """In float32, with and without a loss scale: the same student."""
    x, y = images
    found = []
    for scale in (None, 1024.0):
        keras.utils.set_random_seed(5)
        model = keras_mhgd.Distiller(
            small_net("student"),
            small_net("teacher"),
            methods.MHGD(mhan=keras_mhgd.graph.MHAN([6, 8], num_heads=2)),
        )
        optimizer = keras.optimizers.SGD(0.05, loss_scale_factor=scale)
        model.compile(**task(optimizer=optimizer))
        model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
        found.append(weights(model.student))
    assert_equal(*found, tolerance=1e-6)


@pytest.mark.slow
def test_the_epoch_is_counted_across_fits_and_saved(
    distiller, images, tmp_path
):
    x, y = images
    model = distiller()
    model.fit(x, y, epochs=2, verbose=0)
    model.fit(x, y, epochs=1, verbose=0)
    assert float(model._epoch) == 3
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert float(loaded._epoch) == 3


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True], ids=["own", "given"])
def test_saves_and_resumes_with_its_optimizer(
    small_net, distiller, images, tmp_path, given
):
    x, y = images
    mhan = keras_mhgd.graph.MHAN([6, 8], num_heads=4) if given else None
    model = distiller(
        methods.MHGD(
            num_heads=2, preparation_epochs=1, mhan=mhan, clip_bound=0.7
        )
    )
    model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    assert loaded.prepared
    assert loaded.methods[0].get_config()["clip_bound"] == 0.7
    assert loaded.sensing_points == model.sensing_points
    assert_equal(weights(loaded), weights(model))
    assert_equal(
        [v.numpy() for v in loaded.optimizer.variables],
        [v.numpy() for v in model.optimizer.variables],
    )
    for each in (model, loaded):
        each.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert_equal(weights(loaded.student), weights(model.student), 1e-6)


@pytest.mark.slow
def test_nothing_of_the_teacher_is_in_a_students_file(
    small_net, distiller, images, tmp_path
):
    x, y = images
    model = distiller(teacher=small_net("teacher", widths=(6, 8)))
    model.fit(x, y, verbose=0)
    alone = small_net("student")
    model.student.save(tmp_path / "student.keras")
    alone.save(tmp_path / "alone.keras")
    size = [
        (tmp_path / f"{name}.keras").stat().st_size
        for name in ("student", "alone")
    ]
    assert abs(size[0] - size[1]) < 500
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert len(loaded.variables) == len(alone.variables)
    model.export(tmp_path / "saved_model", verbose=False)
    exported = str(tmp_path / "saved_model" / "variables" / "variables")
    values = [
        tf.train.load_variable(exported, name)
        for name, _ in tf.train.list_variables(exported)
    ]

    def holds(network):
        kernel = network.get_layer("logits").kernel.numpy()
        return any(np.array_equal(value, kernel) for value in values)

    assert holds(model.student)
    assert not holds(model.teacher)


@pytest.mark.slow
def test_data_sets_and_generators_fit(distiller, images):
    x, y = images
    model = distiller()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat()
    model.fit(data, steps_per_epoch=4, epochs=2, shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 8


@pytest.mark.slow
def test_one_hot_labels(distiller, images):
    x, y = images
    model = distiller(loss=keras.losses.CategoricalCrossentropy(True))
    history = model.fit(x, np.eye(3)[y], epochs=4, verbose=0).history
    assert history["task_loss"][-1] < history["task_loss"][0]


@pytest.mark.slow
def test_steps_under_xla_are_the_same(images, distiller):
    losses = []
    for jit_compile in (False, True):
        keras.utils.set_random_seed(1)
        model = distiller(jit_compile=jit_compile)
        history = model.fit(*images, epochs=2, shuffle=False, verbose=0).history
        losses.append([history["task_loss"], history["mhgd"]])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_fit_before_compile_prepares_nothing(small_net, images):
    method = methods.MHGD(num_heads=2, preparation_epochs=1)
    model = keras_mhgd.Distiller(small_net("s"), small_net("t"), method)
    with pytest.raises(ValueError, match="must call `compile"):
        model.fit(*images, verbose=0)
    assert not method.preparation.done


class Steep(Match):
    """A loss of zero whose gradient is NaN."""

    def call(self, student, teacher, labels):
        return {"match": tf.sqrt(tf.reduce_sum(0 * student.outputs))}


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize(
    ("method", "weight", "name"),
    [(Plain, np.nan, "task_loss"), (Steep, 1.0, "the gradient of ")],
)
def test_stops_at_a_step_that_is_not_finite(
    distiller, images, method, weight, name, eagerly
):
    x, y = images
    model = distiller(method(), run_eagerly=eagerly)
    before = [each.numpy() for each in model.student.trainable_variables]
    message = f"must be finite. Received NaN or infinity in: {name}"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.fit(x, y, sample_weight=np.full(len(y), weight), verbose=0)
    after = [each.numpy() for each in model.student.trainable_variables]
    assert_equal(after, before)


def test_refuses_a_missing_loss_if_the_method_has_none(distiller):
    method = methods.FitNet(preparation_epochs=1)
    with pytest.raises(ValueError, match="`loss` must be the student's task l"):
        distiller(method, loss=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"size": 12},
            r"same input shape, .* Received: \(8, 8, 1\) .*\(12, 12",
        ),
        (
            {"classes": 5},
            r"same number of classes. Received: outputs \(3,\) .*\(5,\)",
        ),
    ],
)
def test_refuses_networks_that_do_not_fit(small_net, changes, message):
    with pytest.raises(ValueError, match=message):
        keras_mhgd.Distiller(
            small_net("student"), small_net("teacher", **changes)
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        lambda: methods.MHGD(num_heads=2, preparation_epochs=1),
        lambda: methods.MHGD(
            num_heads=2, preparation_epochs=1, clipping="per_feature"
        ),
        lambda: methods.get("kd_svd"),
        lambda: methods.get("fsp"),
        lambda: methods.get("fitnet"),
    ],
    ids=["mhgd", "per_feature", "kd_svd", "fsp", "fitnet"],
)
def test_different_channels_through_a_projection(
    small_net, distiller, images, tmp_path, method
):
    """It trains with the student and is in none of its files."""
    method = method()
    student = small_net("student", widths=(6, 5))
    parameters = student.count_params()
    model = distiller(method, student=student)
    kernel = method.projections[1].kernel
    assert kernel.shape == (5, 8)
    assert method.projections[0].kernel is None
    before = kernel.numpy()
    history = model.fit(*images, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(kernel).all()
    assert not np.array_equal(kernel, before)
    model.save(tmp_path / "run.keras")
    loaded = keras.saving.load_model(tmp_path / "run.keras")
    np.testing.assert_array_equal(
        loaded.methods[0].projections[1].kernel, kernel
    )
    assert model.student.count_params() == parameters


def test_refuses_an_mhan_of_other_sensing_points(small_net):
    mhan = keras_mhgd.graph.MHAN([6, 9])
    with pytest.raises(ValueError, match=r"same sensing points.*\[6, 9\] in"):
        keras_mhgd.Distiller(
            small_net("student"), small_net("teacher"), methods.MHGD(mhan=mhan)
        )


def test_refuses_the_method_of_another_distiller(small_net, distiller):
    model = distiller()
    with pytest.raises(ValueError, match="must not belong to another distille"):
        keras_mhgd.Distiller(model.student, model.teacher, model.methods)


def test_refuses_what_is_no_built_network(small_net):
    with pytest.raises(TypeError, match="built keras.Model.* or call it once"):
        keras_mhgd.Distiller(keras.Sequential(), small_net())
    with pytest.raises(TypeError, match="Received: 'resnet' of type str"):
        keras_mhgd.Distiller("resnet", small_net())


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize(
    ("label", "dtype"), [(-1, "int64"), (3, "int32"), (255, "uint8")]
)
def test_labels_out_of_range(distiller, images, label, dtype, eagerly):
    x, y = images
    y = y.astype(dtype)
    y[5] = label
    model = distiller(Plain(), run_eagerly=eagerly)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="class numbers from 0 to 2"
    ):
        model.fit(x, y, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("prepared", [False, True])
def test_nan_in_the_teachers_features(small_net, distiller, images, prepared):
    x, y = images
    teacher = small_net("teacher")
    kernel = teacher.layers[-2 - 3].variables[0]
    broken = kernel.numpy()
    broken.flat[0] = np.nan
    mhan = keras_mhgd.graph.MHAN([6, 8]) if prepared else None
    model = distiller(methods.MHGD(mhan=mhan), teacher=teacher)
    kernel.assign(broken)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match="features of 'teacher' must be finite.* at layer 'stage2'",
    ):
        model.fit(x, y, verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("clipping", ["per_variable", "per_feature", None])
def test_gradient_norms_are_measured_beside_the_training(
    small_net, task, images, clipping
):
    """The weights are those of a training without, to the last bit."""
    found = []
    for gradient_norms in (False, True):
        keras.utils.set_random_seed(1)
        model = keras_mhgd.Distiller(
            small_net("student"),
            small_net("teacher"),
            keras_mhgd.methods.MHGD(
                num_heads=2,
                preparation_epochs=1,
                clipping=clipping,
                clip_bound=0.001,
            ),
            gradient_norms=gradient_norms,
        )
        model.compile(**task())
        history = model.fit(
            *images,
            epochs=2,
            batch_size=16,
            verbose=0,
            shuffle=False,
            validation_data=images,
        ).history
        found.append(model.student.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert min(history["task_gradient"]) > 0
    assert min(history["transfer_gradient"]) > 0
    assert all(0 <= share <= 1 for share in history["clipped"])
    assert (max(history["clipped"]) > 0) == (clipping is not None)
    assert not {"val_task_gradient", "val_clipped"} & history.keys()
    copy = keras_mhgd.Distiller.from_config(model.get_config())
    assert copy.gradient_norms


@pytest.mark.slow
def test_gradient_norms_of_combined_sums(small_net, task, images):
    """The transfer is of all terms where no method limits its gradient."""
    methods = ["soft_logits", "similarity_preserving"]
    norms = []
    for method in (methods, methods[0]):
        keras.utils.set_random_seed(1)
        model = keras_mhgd.Distiller(
            small_net("student"),
            small_net("teacher"),
            method,
            gradient_norms=True,
        )
        model.compile(**task())
        norms.append(
            model.fit(*images, batch_size=32, verbose=0, shuffle=False).history
        )
    both, one = norms
    assert both["task_gradient"] == pytest.approx(one["task_gradient"])
    assert both["transfer_gradient"] != pytest.approx(one["transfer_gradient"])
    assert min(both["transfer_gradient"]) > 0
