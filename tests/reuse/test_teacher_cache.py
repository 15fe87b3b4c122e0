import collections
import itertools
import json
import shutil
import signal

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from keras_mhgd.reuse import teacher_cache
from tests.data import viewing
from tests.reuse import filling
from tests.training.launcher import launch


def trained(distiller, method, bars, cached):
    """Trains for four epochs over two views.

    Gives the student's weights after each epoch and the history.
    """
    keras.utils.set_random_seed(3)
    model = distiller(method())
    stream = {"batch_size": 16, "seed": 5, "views": 2}
    if cached:
        data = keras_mhgd.TeacherCache(model, bars, **stream).train()
    else:
        data = bars.train(**stream)
    weights = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: weights.append(model.student.get_weights())
    )
    history = model.fit(
        data,
        epochs=4,
        steps_per_epoch=2,
        shuffle=False,
        verbose=0,
        callbacks=[keep],
    )
    return weights, history.history


METHODS = {
    "mhgd": lambda: methods.MHGD(num_heads=2, preparation_epochs=2),
    "per_feature": lambda: methods.MHGD(
        num_heads=2, preparation_epochs=2, clipping="per_feature"
    ),
    "kd_svd": lambda: methods.get("kd_svd"),
    "soft_logits": lambda: methods.get("soft_logits"),
    "rkd": lambda: methods.get("rkd"),
    "fitnet": lambda: methods.get("fitnet"),
    "mhgd+fitnet+soft_logits": lambda: methods.parts(
        [METHODS["mhgd"](), "fitnet", "soft_logits"]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_gives_the_weights_of_training_without(distiller, bars, name):
    """To the last bit while each view is seen for the first time.

    Later the same images share a batch with others, and a convolution's
    round-off depends on its batch.
    """
    (found, history), (expected, other) = (
        trained(distiller, METHODS[name], bars, cached)
        for cached in (True, False)
    )
    assert history.keys() == other.keys()
    for epochs, tolerance in ((2, 0.0), (4, 1e-4)):
        for a, b in zip(found[epochs - 1], expected[epochs - 1], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_the_teacher_runs_once_a_view(distiller, small_net, bars):
    model = distiller(METHODS["mhgd"]())
    data = keras_mhgd.TeacherCache(model, bars, 16, views=2).train()
    calls = []
    model.targets = calls.append
    model.fit(data, epochs=3, steps_per_epoch=2, shuffle=False, verbose=0)
    assert not calls


@pytest.mark.slow
def test_a_later_start_continues_the_same_stream(distiller, bars):
    cache = keras_mhgd.TeacherCache(distiller(), bars, 16, views=2)
    steps = bars.steps_per_epoch(16)
    whole = itertools.islice(cache.train(), steps, 2 * steps)
    later = itertools.islice(cache.train(initial_epoch=1), steps)
    for a, b in zip(whole, later, strict=True):
        np.testing.assert_array_equal(a[0].images, b[0].images)
        for one, other in zip(
            a[0].features.vectors, b[0].features.vectors, strict=True
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("method", "lengths"), [("mhgd", (6, 8)), ("recommended", (6, 8, 3))]
)
def test_mhgd_keeps_vectors_alone(distiller, bars, method, lengths):
    """Also beside methods that look at logits."""
    model = distiller(method)
    cache = keras_mhgd.TeacherCache(model, bars, 16, views=1)
    taught, _ = next(iter(cache.train()))
    features = taught.features
    assert features.maps == []
    assert (features.outputs is None) == (method == "mhgd")
    shapes = [each.shape for each in features.vectors]
    assert shapes == [(16, length) for length in lengths]


def cache_of(distiller, method, bars, directory, **changes):
    keras.utils.set_random_seed(3)
    model = distiller(method)
    return model, keras_mhgd.TeacherCache(
        model,
        bars,
        directory=directory,
        **{"batch_size": 16, "seed": 5, "views": 2, **changes},
    )


def batch(cache):
    (taught, _), *_ = cache.train().take(1)
    return taught.features


@pytest.mark.slow
def test_in_a_folder_it_is_what_it_is_in_memory(distiller, bars, tmp_path):
    for method in ("kd_svd", "fitnet+soft_logits"):
        expected = batch(cache_of(distiller, method, bars, None)[1])
        found = batch(cache_of(distiller, method, bars, tmp_path)[1])
        for a, b in zip(
            keras.tree.flatten(expected), keras.tree.flatten(found), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    names = "outputs logits maps@stage1 maps@stage2 vectors@stage1"
    assert {each.name for each in tmp_path.iterdir()} == {
        ".lock",
        "manifest.json",
        *(
            f"{name}.float32.{view:05}.npy"
            for name in (*names.split(), "vectors@stage2")
            for view in (0, 1)
        ),
    }


@pytest.mark.slow
def test_the_teacher_runs_only_for_what_is_missing(
    distiller, bars, tmp_path, monkeypatch
):
    cache_of(distiller, "fitnet", bars, tmp_path)
    times = {each.name: each.stat().st_mtime_ns for each in tmp_path.iterdir()}
    filled = []
    fill = keras_mhgd.TeacherCache._fill
    monkeypatch.setattr(
        keras_mhgd.TeacherCache,
        "_fill",
        lambda self, view, kept, *rest: (
            filled.append((view, *kept)) or fill(self, view, kept, *rest)
        ),
    )
    cache_of(distiller, "attention_transfer", bars, tmp_path)
    assert filled == []
    cache_of(distiller, "soft_logits+fitnet", bars, tmp_path)
    # "fitnet" reads no outputs, so they are missing as well.
    assert filled == [(view, "logits", "outputs") for view in (0, 1)]
    for name, time in times.items():
        assert name == ".lock" or (tmp_path / name).stat().st_mtime_ns == time


@pytest.mark.slow
def test_float16(distiller, bars, tmp_path):
    exact = batch(cache_of(distiller, "kd_svd", bars, None)[1])
    half = batch(
        cache_of(distiller, "kd_svd", bars, tmp_path, dtype="float16")[1]
    )
    file = tmp_path / "vectors@stage1.float16.00000.npy"
    assert np.load(file).dtype == np.float16
    # Exact features may lie beside the rounded ones.
    whole = batch(cache_of(distiller, "kd_svd", bars, tmp_path)[1])
    np.testing.assert_array_equal(whole.vectors[0], exact.vectors[0])
    assert half.vectors[0].dtype == "float32"
    np.testing.assert_allclose(half.vectors[0], exact.vectors[0], atol=1e-3)
    assert not np.array_equal(half.vectors[0], exact.vectors[0])


@pytest.mark.slow
def test_refuses_a_foreign_folder(distiller, bars, tmp_path):
    model, _ = cache_of(distiller, "soft_logits", bars, tmp_path)
    message = "must belong to this teacher.*views: 2 there, 3 now. Choose"
    with pytest.raises(ValueError, match=message):
        cache_of(distiller, "soft_logits", bars, tmp_path, views=3)
    fewer = bars.take(12)
    with pytest.raises(ValueError, match="data: '.*there, '.*now"):
        cache_of(distiller, "soft_logits", fewer, tmp_path)
    kernel = model.teacher.layers[1].kernel
    kernel.assign(kernel + 1)
    with pytest.raises(ValueError, match="Received: teacher: '.*there, '.*now"):
        keras_mhgd.TeacherCache(
            model, bars, batch_size=16, seed=5, views=2, directory=tmp_path
        )
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(ValueError, match="manifest.json must hold a JSON"):
        cache_of(distiller, "soft_logits", bars, tmp_path)


def test_refuses_a_damaged_file(distiller, bars, tmp_path):
    cache_of(distiller, "soft_logits", bars, tmp_path)
    file = tmp_path / "logits.float32.00001.npy"
    np.save(file, np.zeros((32, 4), "float32"))
    with pytest.raises(
        ValueError, match=r"logits.float32.00001.npy must hold.*\(32, 4\)"
    ):
        cache_of(distiller, "soft_logits", bars, tmp_path)


def test_a_failure_before_anything_is_saved_leaves_nothing(
    distiller, bars, tmp_path, monkeypatch
):
    def fail(self, *_):
        raise OSError("No space left on device")

    monkeypatch.setattr(keras_mhgd.TeacherCache, "_fill", fail)
    with pytest.raises(OSError, match="No space"):
        cache_of(distiller, "soft_logits", bars, tmp_path)
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {".lock", "manifest.json"}


class Killed(BaseException):
    """Ends a process at once."""


@pytest.mark.parametrize("method", ["kd_svd", "soft_logits+fitnet"])
def test_filling_goes_on_where_it_was_killed(
    distiller, bars, tmp_path, monkeypatch, method, capsys
):
    """Twice, within a view: no batch that was saved is computed again."""
    monkeypatch.setattr(teacher_cache, "_SAVED_EVERY", 0.0)
    expected = cache_of(distiller, method, bars, None, batch_size=4)[1]
    seen = []
    by_name = keras_mhgd.TeacherCache._by_name

    def counted(self, found):  # a batch's, or specs
        named = by_name(self, found)
        first = next(iter(named.values()))
        if hasattr(first, "numpy"):
            if len(seen) in ends:
                ends.remove(len(seen))
                raise Killed
            seen.append(first.numpy().tobytes())
        return named

    monkeypatch.setattr(keras_mhgd.TeacherCache, "_by_name", counted)
    steps = bars.steps_per_epoch(4)
    ends = [3, steps + 2]
    for _ in range(2):
        with pytest.raises(Killed):
            cache_of(distiller, method, bars, tmp_path, batch_size=4)
        assert (tmp_path / "filling.json").exists()
    _, found = cache_of(
        distiller, method, bars, tmp_path, batch_size=4, verbose=True
    )
    assert len(seen) == len(set(seen)) == 2 * steps
    assert not list(tmp_path.glob("*.partial"))
    assert not (tmp_path / "filling.json").exists()
    told = capsys.readouterr().out
    assert "Teacher cache: 2 views of 32 images, " in told
    assert "View 2 of 2 is filled." in told and "View 1" not in told
    for one, other in zip(
        itertools.islice(expected.train(), 2 * steps),
        itertools.islice(found.train(), 2 * steps),
        strict=True,
    ):
        for a, b in zip(
            keras.tree.flatten(one), keras.tree.flatten(other), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_a_small_disk_is_refused_before_filling(
    distiller, bars, tmp_path, monkeypatch
):
    usage = collections.namedtuple("usage", "free")(100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"must have room .* They take 0\.00 GB"):
        cache_of(distiller, "soft_logits", bars, tmp_path)


def test_views_by_layers_are_other_data(distiller, bars, tmp_path):
    cache_of(distiller, "soft_logits", bars, tmp_path)
    layers = keras.layers.RandomRotation
    for changed in (
        bars.augmented(layers(0.1)),
        bars.augmented(layers(0.2)),
        bars.augmented("crop", mixing=keras_mhgd.data.Mixing()),
    ):
        with pytest.raises(ValueError, match="data: '.*there, '.*now"):
            cache_of(distiller, "soft_logits", changed, tmp_path)


@pytest.mark.slow
def test_mixed_views_are_those_of_the_live_teacher(distiller, bars):
    """The cached outputs belong to the mixed images of the same epoch."""
    mixed = bars.augmented("crop", mixing=keras_mhgd.data.Mixing())
    model, cache = cache_of(distiller, "soft_logits", mixed, None)
    steps = mixed.steps_per_epoch(16)
    for taught, labels in itertools.islice(cache.train(), 2 * steps):
        expected = model.targets(taught.images).logits
        np.testing.assert_allclose(taught.features.logits, expected, atol=1e-6)
        np.testing.assert_allclose(tf.reduce_sum(labels, 1), 1, atol=1e-6)


@pytest.mark.slow
def test_mixed_views_of_a_filling_that_was_killed_twice(tmp_path):
    """SIGKILL in each view; then they are the live teacher's to the last bit.

    In float32, from images that are read when they are needed.
    """
    images, directory = tmp_path / "images", tmp_path / "cache"
    images.mkdir()
    viewing.write_images(images)
    for batches, kept in ((4, (0, 3)), (5, (1, 2))):
        code, output = launch("tests.reuse.filling", images, directory, batches)
        assert code == -signal.SIGKILL, output
        state = json.loads((directory / "filling.json").read_text())
        assert (state["view"], state["steps"]) == kept
    distiller, dataset = filling.parts(images)
    cache = filling.cache_of(distiller, dataset, directory)
    live = tf.function(distiller.targets, autograph=False)
    steps = filling.VIEWS * dataset.steps_per_epoch(filling.BATCH)
    for (taught, labels), (views, shares) in zip(
        cache.train().take(steps),
        dataset.train(filling.BATCH).take(steps),
        strict=True,
    ):
        np.testing.assert_array_equal(taught.images, views)
        np.testing.assert_array_equal(labels, shares)
        both = [
            keras.tree.flatten(each) for each in (taught.features, live(views))
        ]
        kept = [pair for pair in zip(*both, strict=True) if pair[0] is not None]
        assert len(kept) == 4  # outputs, logits and two maps
        for found, expected in kept:
            assert found.dtype == "float32"
            np.testing.assert_array_equal(found, expected)


def test_refuses_an_unknown_dtype(distiller, bars):
    with pytest.raises(ValueError, match="`dtype` must be one of float32, fl"):
        cache_of(distiller, "soft_logits", bars, None, dtype="int8")


def test_the_largest_logits(distiller, bars, tmp_path, capsys):
    model = distiller(methods.get("soft_logits"))
    stream = {"batch_size": 16, "views": 2, "directory": tmp_path}
    full, part = (
        keras_mhgd.TeacherCache(
            model, bars, **stream, dtype=dtype, top_k=top_k, verbose=True
        )
        for dtype, top_k in (("float32", None), ("float16", 1))
    )
    assert full.top_k_error == (0.0, 0.0)
    errors = []
    for (one, _), (two, _) in zip(
        full.train().take(4), part.train().take(4), strict=True
    ):
        expected, found = (each.features.logits.numpy() for each in (one, two))
        rows, best = range(16), expected.argmax(1)
        np.testing.assert_allclose(
            found[rows, best], expected[rows, best], rtol=1e-3
        )
        p, q = (scipy.special.softmax(each, 1) for each in (expected, found))
        np.testing.assert_allclose(q[rows, best], p[rows, best], rtol=2e-3)
        others = np.sort(np.where(np.eye(3)[best] > 0, np.nan, q), 1)[:, :2]
        np.testing.assert_allclose(others[:, 0], others[:, 1])
        errors += list(np.abs(p - q).sum(1) / 2)
    expected = np.mean(errors), np.max(errors)
    assert part.top_k_error == pytest.approx(expected, rel=0.02)
    assert 0.001 < part.top_k_error[0] < 0.5
    assert not list(tmp_path.glob("outputs.float16*"))
    told = capsys.readouterr().out
    assert "The 1 largest logits of 3 are kept: the probabilities are" in told
    before = model.student.get_weights()
    model.fit(
        part.train(), epochs=1, steps_per_epoch=2, verbose=0, shuffle=False
    )
    assert (before[0] != model.student.get_weights()[0]).any()


def probabilities(cache, number, share=None):
    """Each teacher's probabilities of two epochs of two batches."""
    batches = [
        taught.features
        for taught, *_ in itertools.islice(cache.train(share=share), 4)
    ]
    teachers = [batches] if number == 1 else zip(*batches, strict=True)
    return [
        np.concatenate([scipy.special.softmax(each.logits, 1) for each in of])
        for of in teachers
    ]


@pytest.mark.parametrize("number", [1, 2])
def test_the_largest_logits_of_mixed_views_and_several_teachers(
    small_net, task, bars, number
):
    """Their largest probabilities, and workers' parts of them."""
    teachers = [small_net(f"teacher{i}", classes=3) for i in range(number)]
    model = keras_mhgd.Distiller(
        small_net("student"),
        teachers if number > 1 else teachers[0],
        "soft_logits",
    )
    model.compile(**task(loss=keras.losses.CategoricalCrossentropy(True)))
    mixed = bars.augmented("crop", mixing=keras_mhgd.data.Mixing())
    full, part = (
        keras_mhgd.TeacherCache(model, mixed, 16, views=2, top_k=top_k)
        for top_k in (None, 1)
    )
    expected, found = (probabilities(each, number) for each in (full, part))
    assert len(expected) == len(found) == number
    errors = []
    for p, q in zip(expected, found, strict=True):
        rest = (1 - p.max(1, keepdims=True)) / 2
        is_top = p == p.max(1, keepdims=True)
        np.testing.assert_allclose(q, np.where(is_top, p, rest), atol=1e-6)
        errors.append(np.abs(p - q).sum(1) / 2)
    assert part.top_k_error == pytest.approx(
        (np.mean(errors), np.max(errors)), rel=1e-4
    )
    halves = [
        probabilities(
            part,
            number,
            lambda batches, rows=rows: batches.map(
                lambda *places: tf.nest.map_structure(lambda x: x[rows], places)
            ),
        )
        for rows in (slice(8), slice(8, 16))
    ]
    for whole, *parts in zip(found, *halves, strict=True):
        joined = np.stack([each.reshape(4, 8, 3) for each in parts], axis=1)
        np.testing.assert_array_equal(joined.reshape(whole.shape), whole)


@pytest.mark.parametrize(
    ("method", "top_k", "message"),
    [
        ("kd_svd", 1, "`top_k` needs a method .* that read outputs|maps|vect"),
        ("soft_logits", 3, "smaller than the number of classes, 3. .*=3"),
        ("soft_logits", 0, "`top_k` must be"),
    ],
)
def test_refuses_a_top_k_that_does_not_fit(
    distiller, bars, method, top_k, message
):
    with pytest.raises(ValueError, match=message):
        keras_mhgd.TeacherCache(
            distiller(methods.get(method)), bars, 16, views=1, top_k=top_k
        )


def test_refuses_a_top_k_without_a_softmax(distiller, small_net, bars):
    teacher = small_net("teacher", classes=3)
    x = keras.layers.Activation("sigmoid")(teacher.output)
    teacher = keras.Model(teacher.input, x)
    model = distiller(
        methods.get("soft_logits"),
        teacher=teacher,
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    with pytest.raises(ValueError, match="a softmax as its last operation"):
        keras_mhgd.TeacherCache(model, bars, 16, views=1, top_k=1)
