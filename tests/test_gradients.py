import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.features import FeatureExtractor

EPOCHS = [0, 20, 39, 40, 41, 42, 45, 50, 60, 100, 139]


def reference_gradients(data):
    """Of the task and of the transfer, which doesn't reach tensor 3."""
    task = [tf.constant(data[f"in/main{i}"]) for i in range(5)]
    transfer = [
        None if i == 3 else tf.constant(data[f"in/dist{i}"]) for i in range(5)
    ]
    return task, transfer


@pytest.mark.parametrize("epoch", EPOCHS)
def test_clipping_agrees_with_the_reference(golden, close, epoch):
    """The reference counts epochs from 0; transfer begins at its 40th."""
    data = golden("tf_clip")
    rule = gradients.PerVariableClipping()
    joined = rule.join(*reference_gradients(data), epoch - 40.0)
    for i, gradient in enumerate(joined):
        # Tensor 4 has no weight decay.
        decay = 5e-4 * data[f"in/var{i}"] if i < 4 else 0.0
        close(gradient + decay, data[f"mhgd/epoch{epoch}/clipped{i}"], 1e-5)


def test_two_optimizer_steps_agree_with_the_reference(golden, close):
    data = golden("tf_clip")
    variables = [tf.Variable(data[f"in/var{i}"]) for i in range(5)]
    variables = [keras.Variable(v) for v in variables]
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    rule = gradients.PerVariableClipping()
    for step in (1, 2):
        joined = rule.join(*reference_gradients(data), 1.0)
        updates = [
            gradient + (5e-4 * variable.value if i < 4 else 0.0)
            for i, (gradient, variable) in enumerate(
                zip(joined, variables, strict=True)
            )
        ]
        optimizer.apply(updates, variables)
        for i, variable in enumerate(variables):
            close(
                variable, data[f"mhgd/epoch41/var_after_step{step}_{i}"], 1e-5
            )


def test_mhans_gradient_with_decay_agrees_with_the_reference(golden, close):
    data = golden("tf_clip")
    regularizer = keras.regularizers.L2(5e-4)
    for name in ("fc/weights", "fc/biases", "bn/gamma", "bn/beta"):
        variable = tf.Variable(data[f"mhgd/mha/var/{name}"])
        with tf.GradientTape() as tape:
            decay = regularizer(variable)
        total = data[f"mhgd/mha/loss_grad/{name}"] + tape.gradient(
            decay, variable
        )
        close(total, data[f"mhgd/mha/total_grad/{name}"], 1e-5)


def joined(rule, task, transfer, decay=0.0, epoch=100.0):
    """Runs a rule on losses with the given gradients of one variable."""
    variable = tf.Variable(tf.zeros(len(task)))
    with tf.GradientTape(persistent=True) as tape:
        losses = gradients.Losses(
            *(tf.reduce_sum(variable * g) for g in (task, decay, transfer))
        )
    return rule(gradients.Step(tape, losses, [variable], epoch, None))[0]


def test_sum_adds_all_three():
    found = joined(gradients.Sum(), [1.0, 2.0], [10.0, 10.0], 0.5)
    np.testing.assert_allclose(found, [11.5, 12.5])


def test_clipping_bounds_the_transfer_by_the_task_alone():
    rule = gradients.PerVariableClipping(bound=0.5)
    found = joined(rule, [3.0, 4.0], [60.0, 80.0], decay=1.0)
    # |task| = 5, so the transfer shrinks to 2.5 = |(1.5, 2.0)|.
    np.testing.assert_allclose(found, [3 + 1 + 1.5, 4 + 1 + 2.0], rtol=1e-6)


def test_a_small_transfer_is_not_clipped():
    rule = gradients.PerVariableClipping()
    found = joined(rule, [3.0, 4.0], [0.1, 0.2])
    np.testing.assert_allclose(found, [3.1, 4.2], rtol=1e-6)


@pytest.mark.parametrize("epoch", [0.0, 1.0, 50.0])
def test_bound_grows_as_the_sigmoid_of_the_epoch(epoch):
    rule = gradients.PerVariableClipping()
    found = joined(rule, [1.0, 0.0], [0.0, 9.0], epoch=epoch)
    np.testing.assert_allclose(found, [1, 1 / (1 + np.exp(-epoch))], rtol=1e-6)


@pytest.mark.parametrize("transfer", [[0.0, 0.0], [1.0, 1.0]])
@pytest.mark.parametrize(
    "rule", [gradients.PerVariableClipping(), gradients.PublishedFormula()]
)
def test_zero_gradients_stay_finite(rule, transfer):
    assert np.isfinite(joined(rule, [0.0, 0.0], transfer)).all()


def test_huge_gradients_of_a_loss_scale_do_not_overflow():
    rule = gradients.PerVariableClipping()
    found = joined(rule, [1e25, 0.0], [0.0, 1e30])
    np.testing.assert_allclose(found, [1e25, 1e25], rtol=1e-5)


def test_published_formula():
    # tau = max(1, 5 / 0.5) = 10, and max(1, 5 / 50) = 1.
    for transfer, tau in (([0.3, 0.4], 10.0), ([30.0, 40.0], 1.0)):
        found = joined(gradients.PublishedFormula(), [3.0, 4.0], transfer)
        scale = 1 / (1 + np.exp(-tau))
        expected = np.array([3.0, 4.0]) + scale * np.array(transfer)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_variables_that_one_loss_does_not_reach():
    a, b, c = (tf.Variable(1.0) for _ in range(3))
    with tf.GradientTape(persistent=True) as tape:
        losses = gradients.Losses(2 * a, tf.constant(0.0), 3 * b)
    rule = gradients.PerVariableClipping()
    found = rule(gradients.Step(tape, losses, [a, b, c], 0.0, None))
    assert [g is None or float(g) for g in found] == [2.0, 3.0, True]


def test_a_variable_of_the_method_shares_what_is_left_of_the_others():
    """Transfers (6, 8) and 10 become (3, 4) and 5: half, on the whole.

    Clipped to the task's 5 and 5 of norms 10 and 10; so the third, which the
    task doesn't reach, halves too.
    """
    rule = gradients.PerVariableClipping()
    task = [tf.constant([5.0, 0.0]), tf.constant([5.0]), None, None]
    transfer = [tf.constant([6.0, 8.0]), tf.constant([10.0])]
    found = rule.join(task, [*transfer, tf.constant([7.0]), None], 100.0)
    expected = [[5 + 3.0, 4.0], [5 + 5.0], [3.5]]
    for gradient, value in zip(found, expected, strict=False):
        np.testing.assert_allclose(gradient, value, rtol=1e-6)
    assert found[3] is None


def test_names():
    assert isinstance(gradients.get(None), gradients.Sum)
    assert isinstance(gradients.get("formula"), gradients.PublishedFormula)
    assert gradients.get("per_variable", 0.5).bound == 0.5
    assert gradients.get("per_feature", 0.5).bound == 0.5
    with pytest.raises(ValueError, match="must be one of per_variable, per_fe"):
        gradients.get("per_var")
    for name in ("per_variable", "per_feature"):
        with pytest.raises(ValueError, match="`clip_bound` must be positive"):
            gradients.get(name, 0.0)


class TestPerFeatureClipping:
    """On a linear network, float64, where each gradient can be written down.

    h1 = x W1, h2 = h1 W2, outputs = h2 W3 + h1 V: one way goes around h2.
    """

    EPOCH = 0.5

    @pytest.fixture
    def parts(self):
        keras.config.set_dtype_policy("float64")
        rng = np.random.default_rng(0)
        dense = keras.layers.Dense
        inputs = keras.Input((3,))
        h1 = dense(4, use_bias=False, name="h1")(inputs)
        h2 = dense(5, use_bias=False, name="h2")(h1)
        around = dense(2, use_bias=False, name="around")(h1)
        last = dense(2, use_bias=False, name="last")(h2)
        model = keras.Model(inputs, keras.layers.Add()([last, around]))
        for variable in model.variables:
            variable.assign(rng.normal(size=variable.shape))
        x, task, t1, t2 = (rng.normal(size=(6, size)) for size in (3, 2, 4, 5))
        return model, x, task, t1, t2

    def run(self, rule, parts, own=()):
        """Gradients of W1, W2, around and last, then of `own`."""
        model, x, task, t1, t2 = parts
        extractor = FeatureExtractor(
            model,
            ["h1", "h2"],
            split=lambda feature: rule.split(feature, self.EPOCH),
        )
        with tf.GradientTape() as tape:
            features = extractor(x, training=True)
            h1, h2 = features.forked().maps
            transfer = tf.reduce_sum(h1 * t1) + tf.reduce_sum(h2 * t2)
            for variable in own:
                transfer += 7.0 * variable
            losses = gradients.Losses(
                tf.reduce_sum(features.outputs * task),
                tf.reduce_sum(tf.square(model.get_layer("h1").kernel)),
                transfer,
            )
        variables = [
            model.get_layer(name).kernel
            for name in ("h1", "h2", "around", "last")
        ]
        return rule(
            gradients.Step(
                tape, losses, [*variables, *own], self.EPOCH, features, own
            )
        )

    @staticmethod
    def clip(transfer, arriving, bound):
        allowed = bound / (1 + np.exp(-0.5)) * np.linalg.norm(arriving)
        return transfer * min(1, allowed / np.linalg.norm(transfer))

    @pytest.mark.parametrize("bound", [0.1, 0.3, 100.0])
    def test_gradients_written_down(self, parts, bound):
        model, x, task, t1, t2 = parts
        own = tf.Variable(1.0, dtype="float64")
        found = self.run(gradients.PerFeatureClipping(bound), parts, [own])
        w1, w2, around, last = (
            model.get_layer(name).kernel.numpy()
            for name in ("h1", "h2", "around", "last")
        )
        h1 = x @ w1
        g2 = task @ last.T
        into_2 = self.clip(t2, g2, bound)
        g1 = (g2 + into_2) @ w2.T + task @ around.T
        into_1 = self.clip(t1, g1, bound)
        share = np.hypot(*map(np.linalg.norm, (into_1, into_2)))
        share /= np.hypot(*map(np.linalg.norm, (t1, t2)))
        expected = [
            x.T @ (g1 + into_1) + 2 * w1,
            h1.T @ (g2 + into_2),
            h1.T @ task,
            (h1 @ w2).T @ task,
            7.0 * share,
        ]
        assert (share < 0.9) == (bound < 1.0)
        for gradient, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(gradient, value, rtol=1e-6)

    def test_what_fits_the_bound_is_the_sum(self, parts):
        found = self.run(gradients.PerFeatureClipping(1e6), parts)
        model, x, task, t1, t2 = parts
        extractor = FeatureExtractor(model, ["h1", "h2"])
        variables = [
            model.get_layer(name).kernel
            for name in ("h1", "h2", "around", "last")
        ]
        with tf.GradientTape() as tape:
            features = extractor(x)
            h1, h2 = features.maps
            loss = (
                tf.reduce_sum(features.outputs * task)
                + tf.reduce_sum(tf.square(variables[0]))
                + tf.reduce_sum(h1 * t1)
                + tf.reduce_sum(h2 * t2)
            )
        expected = tape.gradient(loss, variables)
        for gradient, value in zip(found, expected, strict=True):
            np.testing.assert_allclose(gradient, value, rtol=1e-9)

    def test_zero_gradients_stay_finite(self, parts):
        model, x, *rest = parts
        parts = model, x, *(np.zeros_like(each) for each in rest)
        own = tf.Variable(1.0, dtype="float64")
        found = self.run(gradients.PerFeatureClipping(), parts, [own])
        assert all(np.isfinite(gradient).all() for gradient in found)


def test_norms_of_variables():
    """Of norms 5 and 2 the task's; 10 of the transfer's 10, 1, 0 is clipped."""
    variables = [tf.Variable(tf.zeros(2)) for _ in range(3)]
    task = [[3.0, 4.0], [2.0, 0.0], [0.0, 0.0]]
    transfer = [[6.0, 8.0], [0.0, 1.0], [0.0, 0.0]]
    with tf.GradientTape(persistent=True) as tape:
        losses = [
            tf.add_n(
                [
                    tf.reduce_sum(variable * gradient)
                    for variable, gradient in zip(variables, each, strict=True)
                ]
            )
            for each in (task, transfer)
        ]
        losses = gradients.Losses(losses[0], tf.constant(0.0), losses[1])
    arguments = tape, losses, variables, 100.0, None
    for rule, clipped in (
        (gradients.PerVariableClipping(), 0.5),
        (gradients.Sum(), 0.0),
        (gradients.PublishedFormula(), 1.0),
    ):
        found = rule.norms(gradients.Step(*arguments)).summary(scale=2.0)
        np.testing.assert_allclose(
            [found[name] for name in gradients.SUMMARY],
            [29**0.5 / 2, 101**0.5 / 2, clipped],
            rtol=1e-6,
        )


@pytest.mark.parametrize("finite", [True, False])
def test_sparse_gradients_alone_are_passed_over_with_a_loss_scale(finite):
    """Whoever found a loss that is not finite says so; the rows are."""
    table = keras.Variable(np.ones((3, 2), "float32"))
    rows = tf.IndexedSlices(tf.ones((1, 2)), [1], [3, 2])
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.5), initial_scale=1.0
    )
    optimizer.build([table])
    assert not gradients.apply(optimizer, [rows], [table], tf.constant(finite))
    moved = 1.0 if not finite else 0.5
    np.testing.assert_array_equal(table, [[1, 1], [moved, moved], [1, 1]])
    assert float(optimizer.dynamic_scale) == (1.0 if finite else 0.5)


@pytest.mark.parametrize("scaled", [True, False])
def test_no_gradient_at_all_is_an_error(scaled):
    variable = keras.Variable(1.0)
    optimizer = keras.optimizers.SGD(0.5)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build([variable])
    with pytest.raises(ValueError, match="No gradients"):
        gradients.apply(optimizer, [None], [variable], tf.constant(True))
