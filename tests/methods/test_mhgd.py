import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mhgd import gradients, methods
from keras_mhgd.features import FeatureExtractor, Features
from keras_mhgd.features.compression import (
    student_vector,
    teacher_vector,
    varied_signs,
)
from keras_mhgd.graph import MHAN, Edge
from keras_mhgd.methods import MHGD, CrossMHGD, Variant, graph_divergence
from tests.methods.calls import called

HEADS, BATCH = 2, 5


def logits(seed, edges=2, heads=HEADS, batch=BATCH, scale=2.0):
    rng = np.random.default_rng(seed)
    shape = (heads, batch, batch)
    return [rng.normal(scale=scale, size=shape) for _ in range(edges)]


def edges(logits):
    """Factors of given logits."""
    logits = [tf.convert_to_tensor(each) for each in logits]
    return [
        Edge(
            each,
            tf.eye(each.shape[2], batch_shape=each.shape[:1], dtype=each.dtype),
        )
        for each in logits
    ]


def divergence(student, teacher, *args, **kwargs):
    """Of logits."""
    return graph_divergence(edges(student), edges(teacher), *args, **kwargs)


# --- graph_divergence


def test_hand_value():
    """One head, two samples, linear.

    Student rows (3/4, 1/4) and (1/2, 1/2), logits log 3, 0 and 0, 0; teacher
    rows (1/4, 3/4) and (1/2, 1/2). First row: 3/4 log 3 + 1/4 log 1/3 =
    1/2 log 3; second: 0.
    """
    student = [tf.math.log([[[3.0, 1.0], [1.0, 1.0]]])]
    teacher = [tf.math.log([[[1.0, 3.0], [1.0, 1.0]]])]
    expected = 0.5 * np.log(3.0)
    found = divergence(student, teacher, activation="linear")
    assert float(found) == pytest.approx(expected, rel=1e-6)
    mean = divergence(student, teacher, activation="linear", reduction="mean")
    assert float(mean) == pytest.approx(expected / 2, rel=1e-6)
    # Of student and teacher exchanged: 1/4 log 1/3 + 3/4 log 3 too.
    swapped = divergence(teacher, student, activation="linear")
    assert float(swapped) == pytest.approx(expected, rel=1e-6)


def test_direction_is_the_students_graph_first():
    """Rows (1/2, 1/2) of the student, (1/4, 3/4) of the teacher.

    1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3; the other way around
    1/4 log 1/2 + 3/4 log 3/2 = 0.1308.
    """
    student = [tf.math.log([[[1.0, 1.0]]])]
    teacher = [tf.math.log([[[1.0, 3.0]]])]
    found = divergence(student, teacher, activation="linear")
    assert float(found) == pytest.approx(0.5 * np.log(4 / 3), rel=1e-5)


def test_tanh_comes_before_the_softmax():
    student, teacher = logits(0), logits(1)
    found = divergence(student, teacher)
    expected = divergence(
        map(np.tanh, student),
        map(np.tanh, teacher),
        activation="linear",
    )
    linear = divergence(student, teacher, activation="linear")
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert float(linear) > 1.5 * float(found)


@pytest.mark.parametrize("activation", ["tanh", "linear"])
def test_zero_where_graphs_are_equal(activation):
    graph = logits(0)
    assert float(divergence(graph, graph, activation)) == 0
    # A constant added to a row leaves its softmax.
    shifted = [edge + np.arange(5.0)[:, None] for edge in graph]
    found = divergence(graph, shifted, "linear")
    assert abs(float(found)) < 1e-12


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 6),
    heads=st.integers(1, 3),
    scale=st.sampled_from([0.01, 1.0, 100.0]),
    activation=st.sampled_from(["tanh", "linear"]),
)
def test_properties(seed, batch, heads, scale, activation):
    """Not negative; sum over mean is heads x rows; permutations do nothing."""
    student, teacher = (
        logits(seed + i, 1, heads, batch, scale) for i in (0, 1000)
    )
    found = float(divergence(student, teacher, activation))
    assert found >= -1e-12
    assert batch > 1 or found == 0
    mean = divergence(student, teacher, activation, reduction="mean")
    assert found == pytest.approx(float(mean) * heads * batch, abs=1e-9)
    order = np.random.default_rng(seed).permutation(batch)
    permuted = divergence(
        [edge[:, order][:, :, order] for edge in student],
        [edge[:, order][:, :, order] for edge in teacher],
        activation,
    )
    assert float(permuted) == pytest.approx(found, rel=1e-9, abs=1e-9)


def test_is_not_negative_next_to_equality():
    """Rounding of float32 is larger than the divergence there.

    For graphs that are `step` apart it is about the square of that.
    """

    def both(edges, dtype):
        return [
            Edge(*(tf.cast(each, dtype) for each in edge)) for edge in edges
        ]

    for seed in range(50):
        rng = np.random.default_rng(seed)
        step = 10.0 ** rng.uniform(-8, -3)
        teacher = [Edge(*rng.normal(size=(2, 4, 16, 8)))]
        student = [
            Edge(*(x + step * rng.normal(size=x.shape) for x in teacher[0]))
        ]
        found, expected = (
            float(graph_divergence(both(student, dtype), both(teacher, dtype)))
            for dtype in (tf.float32, tf.float64)
        )
        assert expected > 0
        assert found >= 0
        # Of 64 rows, as exact as this.
        assert found == pytest.approx(expected, rel=0.05, abs=1e-6)


def test_edges_add():
    student, teacher = logits(0), logits(1)
    parts = [
        float(divergence([a], [b]))
        for a, b in zip(student, teacher, strict=True)
    ]
    found = divergence(student, teacher)
    assert float(found) == pytest.approx(sum(parts), rel=1e-12)
    with pytest.raises(ValueError, match="shorter"):
        divergence(student, teacher[:1])


@pytest.mark.parametrize("activation", ["tanh", "linear"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_against_finite_differences(activation, reduction):
    student, teacher = logits(0, 1, batch=3)[0], logits(1, 1, batch=3)[0]

    def loss(student, teacher):
        return divergence([student], [teacher], activation, reduction)

    variables = tf.constant(student), tf.constant(teacher)
    with tf.GradientTape() as tape:
        tape.watch(variables)
        value = loss(*variables)
    found, of_teacher = tape.gradient(value, variables)
    assert of_teacher is None
    numeric, step = np.zeros_like(student), 1e-6
    for index in np.ndindex(*student.shape):
        high, low = student.copy(), student.copy()
        high[index] += step
        low[index] -= step
        difference = float(loss(high, teacher)) - float(loss(low, teacher))
        numeric[index] = difference / (2 * step)
    np.testing.assert_allclose(found, numeric, atol=1e-8)
    assert np.abs(numeric).max() > 1e-3


@pytest.mark.parametrize("activation", ["tanh", "linear"])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e30])
def test_extreme_logits_are_finite(activation, scale):
    student, teacher = (
        [tf.constant(scale * edge, tf.float32) for edge in logits(seed)]
        for seed in (0, 1)
    )
    with tf.GradientTape() as tape:
        tape.watch(student)
        loss = divergence(student, teacher, activation)
    assert np.isfinite(loss)
    for gradient in tape.gradient(loss, student):
        assert np.isfinite(gradient).all()


# --- the list of methods


def test_names():
    assert "mhgd" in methods.names()
    for name in methods.names():
        method = methods.get(name)
        assert isinstance(method, methods.Method)
        assert methods.get(method) is method
        assert method.terms


@pytest.mark.parametrize("kind", [MHGD, CrossMHGD])
def test_config_round_trip_of_every_argument(kind):
    arguments = {
        "num_heads": 3,
        "preparation_epochs": 7,
        "preparation_learning_rate": 0.2,
        "scale_logits": True,
        "clipping": "formula",
        "clip_bound": 0.5,
        "graph_scope": "replica",
        "weight": 2.0,
        "variant": {
            "senses_logits": True,
            "logit_activation": "linear",
            "reduction": "mean",
            "fix_signs": True,
            "statistics": "batch",
            "svd_gradient": "published",
        },
        "name": "mine",
    }
    assert arguments["variant"].keys() == set(Variant._fields)
    config = keras.saving.serialize_keras_object(kind(**arguments))
    for _ in range(2):
        found = methods.get(config)
        config = found.get_config()
        assert {key: config[key] for key in arguments} == arguments
        config = keras.saving.serialize_keras_object(found)
    assert type(found) is kind
    assert isinstance(found.gradient_rule, gradients.PublishedFormula)


def test_signs_are_those_that_the_mhan_has_learnt(tmp_path):
    mhan = MHAN([6, 8], num_heads=2, fix_signs=True)
    mhan.save(tmp_path / "mhan.keras")
    assert keras.saving.load_model(tmp_path / "mhan.keras").fix_signs
    assert MHGD(mhan=mhan).variant.fix_signs
    narrow = MHAN([4, 5], num_heads=2, max_head_size=3)
    assert MHGD(mhan=narrow).max_head_size == 3
    mhan = MHAN([6, 8], num_heads=2)
    assert not CrossMHGD(mhan=mhan).variant.fix_signs
    config = mhan.get_config()
    del config["fix_signs"]  # as saved before there was a choice
    assert MHAN.from_config(config).fix_signs


def test_a_variant_fills_in_what_is_not_given():
    """A dict changes its class's own values, a Variant all."""
    given = {"reduction": "mean"}
    assert MHGD(variant=given).variant == Variant(reduction="mean")
    cross = CrossMHGD(variant=given).variant
    assert cross == Variant(True, "tanh", "mean", True)
    assert CrossMHGD(variant=Variant()).variant == Variant()
    assert MHGD().variant == Variant()


def test_a_configuration_makes_an_mhan_alike_but_untrained():
    mhan = MHAN([4, 5], num_heads=3, scale_logits=True)
    config = keras.saving.serialize_keras_object(MHGD(mhan=mhan))
    for _ in range(2):  # using a configuration leaves it as it is
        found = built(methods.get(config), [(4,), (5,)])
        assert found.mhan.get_config() == mhan.get_config()
        assert not found.preparation.done


@pytest.mark.parametrize(
    ("name", "hint"), [("mhdg", " Did you mean 'mhgd'?"), ("xyz", "")]
)
def test_unknown_names(name, hint):
    with pytest.raises(ValueError) as error:
        methods.parts(name)
    known = ", ".join([*methods.names(), "recommended"])
    assert str(error.value) == (
        f"`method` must be one of {known}. Received: method={name!r}.{hint}"
    )


@pytest.mark.parametrize("wrong", [3, None, MHGD])
def test_wrong_kinds(wrong):
    with pytest.raises(TypeError, match="`method` must be a name, .*mhgd"):
        methods.get(wrong)


# --- MHGD on features

SHAPES = ((4, 4, 6), (2, 2, 8))
FLAT = ((1, 3, 6), (1, 1, 8))


def features(seed=0, batch=BATCH, shapes=SHAPES, dtype="float32", value=None):
    rng = np.random.default_rng(seed)
    maps = [
        np.full((batch, *shape), value)
        if value is not None
        else rng.normal(size=(batch, *shape))
        for shape in shapes
    ]
    outputs = tf.zeros((batch, 3))
    return Features(outputs, [tf.cast(each, dtype) for each in maps])


@pytest.mark.parametrize("name", ["activation", "reduction"])
def test_divergence_refuses_unknown_names(name):
    graph = [tf.zeros((1, 2, 2))]
    with pytest.raises(ValueError, match=f"`{name}` must be one of .*='max'"):
        divergence(graph, graph, **{name: "max"})


def built(method=None, shapes=SHAPES, seed=1):
    keras.utils.set_random_seed(seed)
    method = methods.get("mhgd") if method is None else methods.get(method)
    shape = Features((None, 3), [(None, *each) for each in shapes])
    method.build(shape, shape)
    return method


def run(method, student, teacher):
    """Loss, and its gradient to the student's maps."""
    with tf.GradientTape() as tape:
        tape.watch([student.maps, teacher.maps])
        (loss,) = called(method, student, teacher).values()
    found = tape.gradient(loss, [*student.maps, *teacher.maps])
    count = len(student.maps)
    assert all(gradient is None for gradient in found[count:])
    return loss, found[:count]


def test_name_class_and_default_agree():
    """One seed, one number."""
    losses = [
        float(run(built(given), features(0), features(1))[0])
        for given in (None, "mhgd", MHGD(), MHGD(num_heads=8, weight=1.0))
    ]
    assert losses[0] > 0
    assert len(set(losses)) == 1


def test_is_the_divergence_of_the_heads_graphs():
    method = built(MHGD(num_heads=3, weight=2.0, variant={"reduction": "mean"}))
    equal, _ = run(method, features(0), features(0))
    assert float(equal) == pytest.approx(0, abs=1e-6)
    sums = built(MHGD(num_heads=3, mhan=method.mhan))
    mean, total = (
        float(run(each, features(0), features(1))[0]) for each in (method, sums)
    )
    assert mean == pytest.approx(2.0 * total / (3 * BATCH), rel=1e-5)


def test_cross_attention_is_to_the_teachers_samples():
    method = built(CrossMHGD(num_heads=3, weight=2.0))
    equal, _ = run(method, features(0), features(0))
    assert float(equal) == pytest.approx(0, abs=1e-6)
    student, teacher = features(0), features(1)
    loss, (front, back) = run(method, student, teacher)
    expected = [teacher_vector(each) for each in teacher.maps]
    found = [
        student_vector(*each)
        for each in zip(student.maps, expected, strict=True)
    ]
    (ours,), (theirs,) = map(method.mhan.edges, (found, expected))
    by_hand = divergence(
        [tf.matmul(ours.queries, theirs.keys, transpose_b=True)],
        [theirs.logits],
    )
    assert float(loss) == pytest.approx(2 * float(by_hand), rel=1e-5)
    # The front end is the teacher's.
    assert np.abs(back).max() > 0 and front is None
    (graph,), (of_teacher,) = method.graphs(student, teacher)
    difference = np.log(graph) - np.log(of_teacher)
    assert float(by_hand) == pytest.approx(
        (graph.numpy() * difference).sum(), rel=1e-4
    )


def test_batch_statistics_are_those_of_each_network():
    moving = built(MHGD(num_heads=3))
    method = built(
        MHGD(num_heads=3, variant={"statistics": "batch"}, mhan=moving.mhan)
    )
    before = moving.mhan.get_weights()
    student, teacher = features(0), features(1)
    loss, found = run(method, student, teacher)
    for each in found:
        assert np.isfinite(each).all() and np.abs(each).max() > 0
    # Those of the whole batch, by which MHAN trains, and nothing moves.
    expected = [teacher_vector(each) for each in teacher.maps]
    expected = varied_signs(expected, [each.shape for each in teacher.maps])
    aligned = [
        student_vector(*each)
        for each in zip(student.maps, expected, strict=True)
    ]
    for a, b in zip(before, moving.mhan.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    moving.mhan.trainable = True
    by_hand = divergence(
        *(
            [edge.logits for edge in moving.mhan.edges(each, training=True)]
            for each in (aligned, expected)
        )
    )
    assert float(loss) == pytest.approx(float(by_hand), rel=1e-4)
    assert float(loss) != float(run(moving, student, teacher)[0])


@pytest.mark.parametrize("fix_signs", [False, True])
def test_signs_vary_unless_they_are_fixed(fix_signs):
    """What is kept for all methods is the same. Vectors keep their signs."""
    shapes = (*SHAPES, (4,))
    variant = {"fix_signs": fix_signs}
    method = built(MHGD(num_heads=3, variant=variant), shapes)
    student, teacher = features(0, shapes=shapes), features(1, shapes=shapes)
    expected = method.targets(teacher).vectors
    for a, b in zip(expected, teacher.maps, strict=True):
        np.testing.assert_array_equal(a, teacher_vector(b))
    if not fix_signs:
        expected = varied_signs(expected, [each.shape for each in teacher.maps])
    loss = float(run(method, student, teacher)[0])
    aligned = [
        student_vector(*each)
        for each in zip(student.maps, expected, strict=True)
    ]
    by_hand = divergence(
        *(
            [edge.logits for edge in method.mhan.edges(each)]
            for each in (aligned, expected)
        )
    )
    assert loss == pytest.approx(float(by_hand), rel=1e-4)


def test_the_published_gradient_is_that_of_the_vectors():
    """Twice the exact one where maps are tall; a vector has none of an SVD."""
    shapes = ((4, 4, 6), (8,))
    arguments = {"num_heads": 3, "clipping": None}
    exact = built(MHGD(**arguments), shapes)
    published = built(
        MHGD(
            **arguments,
            variant={"svd_gradient": "published"},
            mhan=exact.mhan,
        ),
        shapes,
    )
    (loss, (front, back)), (other, (front_twice, same)) = (
        run(method, features(0, shapes=shapes), features(1, shapes=shapes))
        for method in (exact, published)
    )
    assert float(loss) == float(other) > 0
    np.testing.assert_allclose(front_twice, 2 * front, rtol=1e-5)
    np.testing.assert_array_equal(back, same)


def test_student_maps_of_other_sizes():
    student = features(0, shapes=((7, 5, 6), (9, 8)))
    loss, found = run(built(), student, features(1))
    assert float(loss) > 0
    assert all(np.abs(gradient).max() > 0 for gradient in found)


DEGENERATE = {
    "zero student": (features(value=0.0), features(1)),
    "zero teacher": (features(0), features(value=0.0)),
    "both zero": (features(value=0.0), features(value=0.0)),
    "constant": (features(value=1.0), features(value=-2.0)),
    "one sample": (features(0, batch=1), features(1, batch=1)),
    "one position": (features(0, shapes=FLAT), features(1, shapes=FLAT)),
    "float16": (features(0, dtype="float16"), features(1, dtype="float16")),
    "bfloat16": (features(0, dtype="bfloat16"), features(1, dtype="bfloat16")),
    "huge float16": (features(value=6e4, dtype="float16"), features(1)),
    "tiny": (features(value=1e-30), features(1)),
}


@pytest.mark.parametrize("kind", [MHGD, CrossMHGD])
@pytest.mark.parametrize("activation", ["tanh", "linear"])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_maps(name, activation, kind):
    student, teacher = DEGENERATE[name]
    variant = {"logit_activation": activation}
    method = built(kind(num_heads=2, variant=variant))
    loss, found = run(method, student, teacher)
    assert loss.dtype == tf.float32
    assert np.isfinite(loss) and float(loss) >= -1e-5
    if kind is CrossMHGD:
        assert found.pop(0) is None
    for gradient in found:
        assert gradient.dtype == student.maps[0].dtype
        assert np.isfinite(tf.cast(gradient, tf.float32)).all()


def test_eager_equals_graph():
    method = built(MHGD(num_heads=2))
    student, teacher = features(0), features(1)
    loss, found = run(method, student, teacher)
    in_graph = tf.function(lambda s, t: run(method, s, t))(student, teacher)
    np.testing.assert_allclose(loss, in_graph[0], rtol=1e-5)
    for a, b in zip(found, in_graph[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [MHGD, CrossMHGD])
def test_permuting_the_batch_changes_nothing(kind):
    method = built(kind(num_heads=2))
    order = np.array([3, 0, 4, 1, 2])
    permuted = [
        Features(each.outputs, [tf.gather(m, order) for m in each.maps])
        for each in (features(0), features(1))
    ]
    loss, _ = run(method, features(0), features(1))
    np.testing.assert_allclose(run(method, *permuted)[0], loss, rtol=1e-4)


def test_frozen_heads_stay_as_they_are():
    method = built(MHGD(num_heads=2))
    assert not method.trainable_variables and not method.losses
    before = method.mhan.get_weights()
    run(method, features(0), features(1))
    for a, b in zip(method.mhan.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"num_heads": 0}, ValueError, "`num_heads` must be 1 or more.*=0"),
        (
            {"preparation_epochs": 0},
            ValueError,
            "`preparation_epochs` must be 1 or more.*preparation_epochs=0",
        ),
        (
            {"preparation_learning_rate": 0.0},
            ValueError,
            "`preparation_learning_rate` must be positive. Received: .*=0.0",
        ),
        (
            {"preparation_learning_rate": float("nan")},
            ValueError,
            "`preparation_learning_rate` must be positive. Received: .*=nan",
        ),
        (
            {"variant": {"logit_activation": "tahn"}},
            ValueError,
            "`logit_activation` must be one of tanh, linear.*mean 'tanh'",
        ),
        (
            {"variant": {"reductoin": "mean"}},
            ValueError,
            "`variant` must be one of senses_logits, .*Did you mean 'reductio",
        ),
        (
            {"variant": "mean"},
            TypeError,
            "`variant` must be a keras_mhgd.methods.Variant or a dict.*'mean'",
        ),
        (
            {"variant": {"reduction": "means"}},
            ValueError,
            "`reduction` must be one of sum, mean.*Did you mean 'mean'",
        ),
        (
            {"clipping": "per_varable"},
            ValueError,
            "`clipping` must be one of .*Did you mean 'per_variable'",
        ),
        (
            {"variant": {"statistics": "bach"}},
            ValueError,
            "`statistics` must be one of moving, batch.*Did you mean 'batch'",
        ),
        (
            {"variant": Variant(svd_gradient="publishd")},
            ValueError,
            "`svd_gradient` must be one of exact, .*Did you mean 'published'",
        ),
        (
            {"graph_scope": "local"},
            ValueError,
            "`graph_scope` must be one of global, replica.*'local'",
        ),
        ({"clip_bound": 0}, ValueError, "`clip_bound` must be positive.*=0"),
        ({"weight": -1.0}, ValueError, "`weight` must be 0 or more.*=-1.0"),
        (
            {"mhan": "mhan.keras"},
            TypeError,
            "`mhan` must be a keras_mhgd.graph.MHAN. .*'mhan.keras' of type s",
        ),
    ],
)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        MHGD(**arguments)


# --- MHAN: trained once, shared, frozen


def extractor(model):
    return FeatureExtractor(model, ["stage1", "stage2"])


def test_prepares_on_the_teacher_and_freezes(small_net, images):
    teacher, student = extractor(small_net("t")), extractor(small_net("s"))
    keras.utils.set_random_seed(0)
    method = MHGD(num_heads=2, preparation_epochs=6)
    method.build(student.shapes, teacher.shapes)
    assert not method.preparation.done
    before = method.mhan.get_weights()
    x, _ = images
    method.preparation.run(teacher, student, x=x, batch_size=16, verbose=0)
    assert method.preparation.done
    assert not method.trainable_variables
    after = method.mhan.get_weights()
    assert any(
        not np.array_equal(a, b) for a, b in zip(after, before, strict=True)
    )
    assert method.preparation.networks == {"mhan": method.mhan}


def test_a_given_mhan_is_prepared_and_never_trained(
    small_net, distiller, images
):
    x, y = images
    mhan = MHAN([6, 8], num_heads=3, scale_logits=True)
    before = mhan.get_weights()
    method = MHGD(mhan=mhan)
    assert method.num_heads == 3
    assert method.scale_logits
    model = distiller(method, run_eagerly=True)
    assert method.preparation.done
    assert method.mhan is mhan
    assert not method.preparation.networks  # which it has learnt itself
    model.fit(x, y, batch_size=16, epochs=2, verbose=0)
    for a, b in zip(mhan.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_two_students_share_an_mhan(small_net, distiller, images):
    """The second sees the same graphs as the first did; nothing trains."""
    x, y = images
    teacher = small_net("teacher")
    first = distiller(
        MHGD(num_heads=2, preparation_epochs=2),
        teacher=teacher,
        run_eagerly=True,
    )
    first.fit(x, y, batch_size=16, verbose=0)
    mhan = first.methods[0].mhan
    vectors = [teacher_vector(m) for m in extractor(teacher)(x).maps]
    graphs = [edge.numpy() for edge in mhan(vectors)]

    second = distiller(MHGD(mhan=mhan), teacher=teacher, run_eagerly=True)
    assert second.prepared
    second.fit(x, y, batch_size=16, epochs=2, verbose=0)
    for a, b in zip(second.methods[0].mhan(vectors), graphs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_broken_off_preparation_leaves_the_heads_frozen(small_net, images):
    teacher, student = extractor(small_net("t")), extractor(small_net("s"))
    method = MHGD(num_heads=2, preparation_epochs=1)
    method.build(student.shapes, teacher.shapes)

    class Stop(keras.callbacks.Callback):
        def on_batch_begin(self, batch, logs=None):
            raise KeyboardInterrupt

    x, _ = images
    with pytest.raises(KeyboardInterrupt):
        method.preparation.run(
            teacher, student, x=x, verbose=0, callbacks=[Stop()]
        )
    assert not method.preparation.done
    assert not method.mhan.trainable
