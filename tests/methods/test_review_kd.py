import types

import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd.methods.review_kd import ReviewKD, hierarchical_context_loss


def features(of, stored):
    maps = [tf.constant(stored[f"in/{of}{i}"]) for i in range(3)]
    embedding = tf.constant(stored[f"in/{of}_pooled"])
    return types.SimpleNamespace(maps=maps, embedding=embedding)


def random(rng, sizes, widths, batch=4):
    maps = [
        tf.constant(rng.normal(size=(batch, *size, width)), "float32")
        for size, width in zip(sizes, widths, strict=True)
    ]
    embedding = tf.constant(rng.normal(size=(batch, 5)), "float32")
    return types.SimpleNamespace(maps=maps, embedding=embedding)


def shapes(of):
    return types.SimpleNamespace(
        maps=[(None, *each.shape[1:]) for each in of.maps],
        embedding=(None, of.embedding.shape[-1]),
    )


def built(student, teacher, **arguments):
    method = ReviewKD(**arguments)
    method.build(shapes(student), shapes(teacher))
    return method


def published_weights(method):
    """Trainable variables by the fixture's names."""
    found = {}
    for i, fusion in enumerate(method.fusions):
        for name, layer, norm in (
            ("conv1", fusion.inner, fusion.inner_norm),
            ("conv2", fusion.outer, fusion.outer_norm),
        ):
            found[f"var/abf{i}/{name}/0/kernel"] = layer.kernel
            found[f"var/abf{i}/{name}/1/gamma"] = norm.gamma
            found[f"var/abf{i}/{name}/1/beta"] = norm.beta
        if i:
            attention = fusion.attention
            found[f"var/abf{i}/att_conv/0/kernel"] = attention.kernel
            found[f"var/abf{i}/att_conv/0/bias"] = attention.bias
    return found


def test_published_numbers(golden, close):
    stored = golden("mdist_reviewkd")
    student, teacher = features("student", stored), features("teacher", stored)
    method = built(student, teacher)
    variables = published_weights(method)
    assert len(variables) == len(method.trainable_variables)
    for name, variable in variables.items():
        variable.assign(stored[name])
    values = [variable.value for variable in variables.values()]
    with tf.GradientTape() as tape:
        tape.watch([student.maps, student.embedding])
        loss = method.call(student, teacher, None)["review_kd"]
    assert float(loss) == pytest.approx(float(stored["loss"]), rel=1e-4)
    found = tape.gradient(loss, [student.maps, student.embedding, values])
    for point, gradient in enumerate(found[0]):
        close(gradient, stored[f"grad/student{point}"], 1e-3)
    close(found[1], stored["grad/student_pooled"], 1e-3)
    for name, gradient in zip(variables, found[2], strict=True):
        close(gradient, stored[f"grad/{name}"], 1e-3)


def test_published_losses_of_fused_maps(golden):
    stored = golden("mdist_reviewkd")
    maps = [stored[f"in/teacher{i}"] for i in range(3)]
    maps.append(stored["in/teacher_pooled"][:, np.newaxis, np.newaxis])
    for i, teacher in enumerate(maps):
        found = hierarchical_context_loss([stored[f"mid/fused{i}"]], [teacher])
        assert float(found) == pytest.approx(float(stored[f"hcl{i}"]), rel=1e-4)


def test_hand_value_of_the_pyramid():
    """Differences 4, 0, 0, 0 of a 2 x 2 map: squares' mean 4, mean 1.

    Weights 1 and 1/2: (4 + 1/2) / (3/2) = 3. Of one position: 4^2.
    """
    student = np.reshape([4.0, 0.0, 0.0, 0.0], (1, 2, 2, 1))
    zeros = np.zeros_like(student)
    assert float(hierarchical_context_loss([student], [zeros])) == 3
    one = student[:, :1, :1], zeros[:, :1, :1]
    assert float(hierarchical_context_loss([one[0]], [one[1]])) == 16
    both = hierarchical_context_loss([student, one[0]], [zeros, one[1]])
    assert float(both) == 19


def test_pyramid_of_a_size_that_levels_do_not_divide():
    """A row of 5, all of 5 rows alike: pooled by 4, 2 and 1 along the row.

    0, 0, 6, 0, 0: 36 / 5; windows 0-1, 1-2, 2-3, 3-4 have means 0, 3, 3, 0:
    9 / 2; 0-2 and 2-4 have 2, 2: 4; all has 6/5: 36 / 25. Weights 1, 1/2,
    1/4, 1/8.
    """
    row = np.reshape([0.0, 0.0, 6.0, 0.0, 0.0], (1, 1, 5, 1))
    student = np.repeat(row, 5, axis=1)
    expected = (7.2 + 4.5 / 2 + 4 / 4 + 1.44 / 8) / (1 + 7 / 8)
    found = hierarchical_context_loss([student], [np.zeros_like(student)])
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_gradient_of_the_pyramid():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 5, 6, 3))
    step = rng.normal(size=student.shape)

    def loss(x):
        return hierarchical_context_loss([x], [teacher])

    x, other = tf.constant(student), tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch([x, other])
        found = hierarchical_context_loss([x], [other])
    gradient, of_teacher = tape.gradient(found, [x, other])
    assert of_teacher is None
    slope = (loss(student + 1e-5 * step) - loss(student - 1e-5 * step)) / 2e-5
    assert float(tf.reduce_sum(gradient * step)) == pytest.approx(
        float(slope), rel=1e-8
    )


def test_sizes_that_differ():
    """Stages of one position meet maps: each takes the nearest position.

    The later stage is resized to the student's map, 3 x 2, and the fused map
    to the teacher's, 5 x 4, before the last convolution. Of 3 rows, 5 take
    0, 0, 1, 1, 2; of 2 columns, 4 take 0, 0, 1, 1.
    """
    rng = np.random.default_rng(0)
    student = random(rng, [(3, 2)], [6])
    teacher = random(rng, [(5, 4)], [7])
    method = built(student, teacher)
    first, second = method.fusions
    _, later = first(student.embedding[:, None, None])
    output, fused = second(student.maps[0], later)
    assert output.shape == (4, 5, 4, 7)
    assert fused.shape == (4, 5, 4, 5)
    rows, columns = [0, 0, 1, 1, 2], [0, 0, 1, 1]
    x = second.inner_norm(second.inner(student.maps[0]), training=True)
    y = np.broadcast_to(later, x.shape)
    share = second.attention(np.concatenate([x, y], -1)).numpy()
    expected = x * share[..., :1] + y * share[..., 1:]
    np.testing.assert_allclose(
        fused, expected.numpy()[:, rows][:, :, columns], rtol=1e-5
    )
    loss = method.call(student, teacher, None)["review_kd"]
    assert np.isfinite(loss)


@pytest.mark.parametrize(
    ("channels", "embedding", "expected"),
    [(None, 9, 9), (None, 600, 512), (256, 600, 256), (16, 9, 16)],
)
def test_channels_of_the_modules(channels, embedding, expected):
    student = types.SimpleNamespace(
        maps=[(None, 2, 2, 6)], embedding=(None, embedding)
    )
    method = ReviewKD(channels)
    method.build(student, student)
    for fusion in method.fusions:
        assert fusion.inner.filters == expected
        assert fusion.outer.kernel.shape[-2] == expected
    assert method.get_config()["channels"] == channels


@pytest.mark.parametrize("channels", [0, -1, 2.5, "512"])
def test_channels_out_of_range(channels):
    with pytest.raises((TypeError, ValueError), match="`channels` must be"):
        ReviewKD(channels)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [0.0, 1.0, None])
@pytest.mark.parametrize("batch", [1, 3])
def test_finite(dtype, value, batch):
    rng = np.random.default_rng(0)
    student = random(rng, [(4, 4), (2, 2)], [6, 7], batch)
    teacher = random(rng, [(3, 3), (2, 2)], [5, 6], batch)
    for each in (student, teacher):
        if value is not None:
            each.maps = [tf.fill(x.shape, value) for x in each.maps]
            each.embedding = tf.fill(each.embedding.shape, value)
        each.maps = [tf.cast(x, dtype) for x in each.maps]
        each.embedding = tf.cast(each.embedding, dtype)
    method = built(student, teacher)
    tensors = [*student.maps, student.embedding]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        loss = method.call(student, teacher, None)["review_kd"]
    assert loss.dtype == "float32"
    assert np.isfinite(loss)
    for gradient in tape.gradient(loss, tensors):
        assert np.isfinite(tf.cast(gradient, "float32")).all()


@pytest.mark.slow
def test_compiles_with_xla():
    rng = np.random.default_rng(0)
    student = random(rng, [(5, 5), (2, 2)], [6, 7])
    teacher = random(rng, [(7, 7), (3, 3)], [5, 6])
    method = built(student, teacher)

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(student.maps)
            loss = method.call(student, teacher, None)["review_kd"]
        return tape.gradient(loss, student.maps)

    compiled = tf.function(gradient, jit_compile=True)()
    for found, expected in zip(compiled, gradient(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(None, 4), (None, 9, 4), (None, None, 3, 4)], ids=str
)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_what_is_no_map_of_a_known_size(shape, side):
    sides = {
        name: types.SimpleNamespace(maps=[(None, 3, 3, 4)], embedding=(None, 4))
        for name in ("student", "teacher")
    }
    sides[side].maps = [shape]
    message = (
        r"must be a map `\(batch, height, width, D\)` of a known size. "
        rf"Received: shape \(None, .*{shape[-1]}\). Choose other"
    )
    with pytest.raises(ValueError, match=message):
        ReviewKD().build(**sides)


def test_config_round_trip():
    config = ReviewKD(weight=5.0).get_config()
    assert ReviewKD.from_config(config).get_config() == config
    assert config["weight"] == 5.0
