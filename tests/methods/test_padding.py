"""Every method that reads maps, on sequences that are padded."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import methods
from keras_mhgd.features import Features
from keras_mhgd.methods.activation_boundaries import activation_boundary_loss
from keras_mhgd.methods.attention_transfer import attention_transfer_loss
from keras_mhgd.methods.fitnet import hint_loss
from keras_mhgd.methods.fsp import fsp_loss, fsp_matrix
from keras_mhgd.methods.nst import neuron_selectivity_loss
from keras_mhgd.methods.overhaul import overhaul_loss
from keras_mhgd.methods.pieces.connector import Connector
from keras_mhgd.methods.vid import variational_information_loss
from keras_mhgd.transfer import shares_of
from tests.methods.calls import shares

BATCH, LENGTH = 4, 6
VALID = (4, 6, 2, 3)  # real positions of the samples, which come first
STUDENT, TEACHER = (5, 6, 4), (5, 7, 3)  # channels of the sensing points
# A convolution reads maps with height and width, which nothing pads.
OF_PICTURES = {"factor_transfer", "review_kd"}
# They pool two maps to one size, position by position.
OF_ONE_LENGTH = {
    "activation_boundaries",
    "attention_transfer",
    "fitnet",
    "nst",
    "overhaul",
    "vid",
}
VARIANTS = {
    "fitnet": {"project": "teacher"},
    "vid": {"normalize": True},
    "mhgd": {"variant": {"statistics": "batch"}},
}


def reads_maps(name):
    return methods.get(name).needs.points


NAMES = [
    name
    for name in methods.names()
    if reads_maps(name) and name not in OF_PICTURES
]
CASES = [(name, {}) for name in NAMES] + list(VARIANTS.items())


def test_what_is_left_out_takes_no_sequences():
    shapes = [Features((None, 3), [(None, 6, 5)], embedding=(None, 8))] * 2
    for name in OF_PICTURES:
        with pytest.raises(ValueError, match="`?maps? `?\\(batch, height"):
            methods.get(name).build(*shapes)


def built(name, arguments=None, student=STUDENT, teacher=TEACHER):
    keras.utils.set_random_seed(1)
    method = type(methods.get(name))(**(arguments or {}))
    method.build(*(shapes(each) for each in (student, teacher)))
    return method


def shapes(widths):
    maps = [(None, None, width) for width in widths]
    return Features(
        (None, 3), maps, (None, 3), (None, 8), maps_before_activation=maps
    )


def drawn(seed, widths, length=LENGTH, batch=BATCH):
    rng = np.random.default_rng(seed)
    maps = [
        tf.constant(rng.normal(size=(batch, length, width)), tf.float32)
        for width in widths
    ]
    logits = tf.constant(rng.normal(size=(batch, 3)), tf.float32)
    embedding = tf.constant(rng.normal(size=(batch, 8)), tf.float32)
    return Features(
        logits, maps, logits, embedding, maps_before_activation=maps
    )


def with_maps(features, change):
    maps = [change(each) for each in features.maps]
    return features._replace(maps=maps, maps_before_activation=maps)


def padded(features, valid=VALID, length=LENGTH, filled=0.0):
    """Marks positions as padded, and adds more of them."""
    mask = tf.sequence_mask(valid, length)

    def change(x):
        x = tf.pad(x, [[0, 0], [0, length - x.shape[1]], [0, 0]])
        return tf.where(mask[..., tf.newaxis], x, filled)

    features = with_maps(features, change)
    return features._replace(masks=[mask] * len(features.maps))


def found(method, student, teacher):
    """Loss, gradients to the student's maps, and to the method's weights."""
    read = student.maps
    weights = [weight.value for weight in method.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(read)
        terms = shares(
            method,
            student.without_padding(),
            teacher.without_padding(),
            tf.constant([0, 1, 2, 0]),
        )
        loss = tf.add_n(list(terms.values()))
    return loss, *tape.gradient(loss, [read, weights])


def close(a, b, rtol=2e-4):
    for one, other in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            scale = max(float(tf.reduce_max(tf.abs(other))), 1e-6)
            np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * scale)


def cut(gradients, length):
    return [None if each is None else each[:, :length] for each in gradients]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_what_is_padded_counts_nowhere(name, arguments):
    method = built(name, arguments)
    student, teacher = drawn(0, STUDENT), drawn(1, TEACHER)
    expected = found(method, padded(student), padded(teacher))
    assert np.isfinite(expected[0])
    # Other values there, as wild as they come.
    other = found(
        method,
        padded(student, filled=np.inf),
        padded(teacher, filled=np.nan),
    )
    assert float(other[0]) == float(expected[0])
    close(other, expected, 1e-6)
    reached = [each for each in expected[1] if each is not None]
    assert reached
    for gradient in reached:
        for sample, valid in enumerate(VALID):
            assert not np.any(gradient[sample, valid:])
            assert np.any(gradient[sample, :valid])
    # Longer sequences.
    longer = found(
        method,
        padded(student, length=LENGTH + 3, filled=7.0),
        padded(teacher, length=LENGTH + 3),
    )
    close(longer[0], expected[0])
    close(cut(longer[1], LENGTH), expected[1])
    close(longer[2], expected[2])
    # What isn't padded does count.
    bump = tf.scatter_nd([[2, 1, 0]], [1.0], (BATCH, LENGTH, 1))
    changed = with_maps(student, lambda x: x + bump)
    assert float(found(method, padded(changed), padded(teacher))[0]) != float(
        expected[0]
    )


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_equal_lengths_as_if_not_padded(name, arguments):
    method = built(name, arguments)
    student, teacher = drawn(0, STUDENT), drawn(1, TEACHER)
    expected = found(method, student, teacher)
    valid = [LENGTH] * BATCH
    long = [
        padded(each, valid, LENGTH + 2, filled=3.0)
        for each in (student, teacher)
    ]
    other = found(method, *long)
    close(other[0], expected[0])
    close(cut(other[1], LENGTH), expected[1])
    close(other[2], expected[2])


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_of_padding_alone(name):
    method = built(name)
    pair = (
        padded(drawn(0, STUDENT), (0, 6, 2, 3)),
        padded(drawn(1, TEACHER), (0, 6, 2, 3)),
    )
    for each in (pair, [padded(pair[0], (0,) * 4), padded(pair[1], (0,) * 4)]):
        for tensor in tf.nest.flatten(found(method, *each)):
            assert tensor is None or np.isfinite(tensor).all()


@pytest.mark.slow
def test_xla():
    """All at once; singular vectors apart, which XLA finds slowly."""
    made = [
        built(name, VARIANTS.get(name))
        for name in NAMES
        if "svd" not in name and "mhgd" not in name
    ]

    def losses(student, teacher):
        student, teacher = (
            padded(drawn(0, widths)._replace(maps=maps)).without_padding()
            for widths, maps in ((STUDENT, student), (TEACHER, teacher))
        )
        return [
            list(method(student, teacher, None).values()) for method in made
        ]

    maps = drawn(0, STUDENT).maps, drawn(1, TEACHER).maps
    close(tf.function(losses, jit_compile=True)(*maps), losses(*maps))


@pytest.mark.parametrize("name", NAMES)
def test_one_network_with_a_mask(name):
    """Positions that either of the networks pads don't count, where the two
    are compared position by position."""
    method = built(name)
    student, teacher = drawn(0, STUDENT), drawn(1, TEACHER)
    masked = padded(student)
    other = padded(teacher, (6, 5, 2, 6))
    valid = np.minimum(VALID, (6, 5, 2, 6))
    if name in OF_ONE_LENGTH:
        close(
            found(method, masked, teacher)[0],
            found(method, masked, padded(teacher))[0],
        )
        close(
            found(method, masked, other)[0],
            found(method, padded(student, valid), padded(teacher, valid))[0],
        )
    else:
        for each in (teacher, other):
            assert np.isfinite(found(method, masked, each)[0])


@pytest.mark.parametrize("name", NAMES)
def test_lengths_that_differ(name):
    method = built(name)
    student = padded(drawn(0, STUDENT, 8), length=8)
    teacher = drawn(1, TEACHER)
    if name in OF_ONE_LENGTH:
        kind = type(method).__name__
        with pytest.raises(
            ValueError,
            match=f"{kind} compares positions: .*`one length`.* 8, .* 6, .*Ch",
        ):
            found(method, student, teacher)
        return
    longer = padded(student, length=9)
    close(found(method, longer, teacher)[0], found(method, student, teacher)[0])


def test_flows_between_points_of_two_lengths():
    """FSP compares positions within a network."""
    method = built("fsp")
    student, teacher = padded(drawn(0, STUDENT)), drawn(1, TEACHER)
    student = student._replace(
        maps=[student.maps[0][:, ::2], *student.maps[1:]],
        masks=[student.masks[0][:, ::2], *student.masks[1:]],
        maps_before_activation=None,
    )
    with pytest.raises(ValueError, match="FSP compares positions.*at point 0"):
        found(method, student, teacher)


# --- by hand

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 3, 4, 2))
MASK = np.arange(4) < np.array([[3], [4], [1]])
REAL_A, REAL_B = A[MASK], B[MASK]  # (8, 2)
LENGTHS = [3, 4, 1]


def of_samples(function):
    """A function of each sample's real positions."""
    return np.stack(
        [
            function(a[:length], b[:length])
            for a, b, length in zip(A, B, LENGTHS, strict=True)
        ]
    )


def unit(x):
    return x / np.linalg.norm(x, axis=0)


def kernels(a, b):
    return np.mean(np.square(unit(a).T @ unit(b)))


VARIANCE = np.array([0.5, 2.0])
HAND_VALUES = {
    "hint": (
        hint_loss,
        [],
        np.sum((REAL_A - REAL_B) ** 2) / (8 * 2),
    ),
    "attention_transfer": (
        lambda a, b, m: attention_transfer_loss(a, b, 2, m),
        [],
        sum(
            np.sum(
                (unit(np.mean(a[:n] ** 2, 1)) - unit(np.mean(b[:n] ** 2, 1)))
                ** 2
            )
            for a, b, n in zip(A, B, LENGTHS, strict=True)
        )
        / 8,
    ),
    "nst": (
        neuron_selectivity_loss,
        [],
        np.mean(
            of_samples(
                lambda a, b: kernels(a, a) + kernels(b, b) - 2 * kernels(a, b)
            )
        ),
    ),
    "vid": (
        variational_information_loss,
        [[VARIANCE]],
        np.mean(np.log(VARIANCE) + (REAL_A - REAL_B) ** 2 / VARIANCE) / 2,
    ),
    "activation_boundaries": (
        lambda a, b, m: activation_boundary_loss(a, b, masks=m),
        [],
        np.sum(np.maximum(1 - np.sign(REAL_B) * REAL_A, 0) ** 2) / 3,
    ),
    "overhaul": (
        overhaul_loss,
        [[np.array([-0.1, -0.2])]],
        np.mean(
            of_samples(
                lambda a, b: np.sum(
                    ((a - np.maximum(b, [-0.1, -0.2])) ** 2)[
                        (a > np.maximum(b, [-0.1, -0.2]))
                        | (np.maximum(b, [-0.1, -0.2]) > 0)
                    ]
                )
            )
        ),
    ),
}


@pytest.mark.parametrize("name", HAND_VALUES)
def test_hand_value(name):
    loss, others, expected = HAND_VALUES[name]
    filled = np.where(MASK[..., np.newaxis], A, 7.0)
    found = loss([filled], [B], *others, [tf.constant(MASK)])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_hand_value_of_flows():
    filled, mask = np.where(MASK[..., np.newaxis], A, 7.0), tf.constant(MASK)
    found = fsp_matrix(filled, B, mask=mask)
    expected = of_samples(lambda a, b: a.T @ b / len(a))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    pair = [[A, B], [B, A]]
    masks = [mask]
    flows = of_samples(lambda a, b: a.T @ b / len(a) - b.T @ a / len(a))
    np.testing.assert_allclose(
        fsp_loss(*pair, student_masks=masks, teacher_masks=masks),
        np.mean(np.sum(flows**2, axis=(1, 2))),
    )


def test_connector_normalises_by_what_is_real():
    layer = Connector(3)
    layer.build((None, 4, 2))
    layer.beta.assign([1.0, 2.0, 3.0])
    x = np.where(MASK[..., np.newaxis], A, 7.0).astype("float32")
    found = layer(x, mask=tf.constant(MASK)).numpy()
    rows = REAL_A @ layer.kernel.numpy()
    expected = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    np.testing.assert_allclose(
        found[MASK], expected + [1, 2, 3], rtol=1e-3, atol=1e-5
    )
    assert not np.any(found[~MASK])


# --- preparations


class Extractor:
    """Reads two points of a network whose inputs are zero where padded."""

    def __init__(self):
        inputs = keras.Input((LENGTH, 2))
        front = keras.layers.Dense(5)(inputs)
        back = keras.layers.Dense(4)(front)
        self.network = keras.Model(inputs, [front, back])
        self.shapes = Features(None, [each.shape for each in (front, back)])
        self.filled = 0.0

    def __call__(self, x, training=False):
        mask = tf.reduce_any(x != 0, axis=-1)
        maps = [
            tf.where(mask[..., tf.newaxis], each, self.filled)
            for each in self.network(x, training=training)
        ]
        return Features(
            maps[-1][:, 0],
            maps,
            maps_before_activation=maps,
            masks=[mask] * len(maps),
        )


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mhgd", {"num_heads": 2, "preparation_epochs": 1}),
        ("overhaul", {}),
        ("fitnet", {"preparation_epochs": 1}),
        ("activation_boundaries", {"preparation_epochs": 1}),
    ],
    ids=str,
)
def test_prepares_without_padding(name, arguments):
    x = np.random.default_rng(0).normal(size=(BATCH, LENGTH, 2))
    x *= np.arange(LENGTH)[:, np.newaxis] < np.array(VALID)[:, None, None]
    found = []
    for filled in (0.0, np.inf):
        method = built(name, arguments, (5, 4), (5, 4))
        networks = Extractor(), Extractor()
        for network in networks:
            network.filled = filled
        method.preparation.run(
            *networks,
            shares=functools.partial(shares_of, method),
            fit=lambda model, **_: model.train_step((x, None)),
        )
        weights = [method.get_weights(), networks[1].network.get_weights()]
        found.append(weights)
    assert method.preparation.done
    for a, b in zip(*map(tf.nest.flatten, found), strict=True):
        np.testing.assert_array_equal(a, b)
    if name == "overhaul":
        for margin, map_ in zip(
            method.margins,
            networks[0].network.predict(x, verbose=0),
            strict=True,
        ):
            real = map_[np.any(x != 0, axis=-1)]
            expected = [np.mean(column[column < 0]) for column in real.T]
            np.testing.assert_allclose(margin, expected, rtol=1e-5)
