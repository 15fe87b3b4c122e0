"""Defines the routes: training steps as a user would write them."""

import importlib.util
import time
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

import keras_mhgd
from benchmarks.speed.contest import Run, looped
from benchmarks.speed.naive import NaiveMHGD
from benchmarks.speed.pairs import (
    PAIRS,
    Pair,
    compile_model,
    distiller,
    mhan,
    mhgd,
)
from keras_mhgd import methods

HINT = "stage2"  # layer that routes with one feature loss read


def make(route: str, pair: str, batch_size: int) -> dict[str, Run]:
    """Makes one route.

    Args:
        route: A name in `ROUTES`.
        pair: A name in `PAIRS`.
        batch_size: Images in a batch.

    Returns:
        The route's `Run` by its name.
    """
    return {route: ROUTES[route](PAIRS[pair], batch_size)}


class _Clock(keras.callbacks.Callback):
    """Times the steps of a `fit`, without its work before and after them."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            self.begin = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        self.end = time.perf_counter(), time.process_time()


def fitted(model: keras.Model, batch) -> Run:
    """Makes a `Run` of `fit`, which repeats one batch in memory."""
    data = tf.data.Dataset.from_tensors(batch).repeat()
    clock = _Clock()

    def run(steps):
        model.fit(
            data,
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
            callbacks=[clock],
        )
        begin, end = clock.begin, clock.end
        return tuple((b - a) / steps for a, b in zip(begin, end, strict=True))

    return run


def _student(fused: bool):
    def make(pair, batch_size):
        student, _ = pair.networks(fused)
        compile_model(student)
        return fitted(student, pair.batch(batch_size))

    return make


def _unnormalised(pair, batch_size):
    """Makes the route of a student whose normalisation does nothing."""
    student, _ = pair.networks(fused=False)
    for layer in student.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.call = lambda inputs, **_: inputs
            layer.trainable = False
    compile_model(student)
    return fitted(student, pair.batch(batch_size))


def _teacher(pair, batch_size):
    _, teacher = pair.networks()
    images, _ = pair.batch(batch_size)
    forward = tf.function(lambda: teacher(images, training=False))
    return looped(forward)


def _input(pair, batch_size):
    batches = iter(pair.dataset().train(batch_size))
    one = looped(lambda: next(batches))
    # Many batches, so that those prefetched earlier hardly count.
    return lambda steps: one(50 * steps)


def _ours(method: Callable[[Pair], methods.Method], points=None, **arguments):
    def make(pair, batch_size):
        model = distiller(pair, method(pair), points, **arguments)
        return fitted(model, pair.batch(batch_size))

    return make


def _cached(pair, batch_size):
    model = distiller(pair, mhgd(pair, clipping="per_feature"))
    cache = keras_mhgd.TeacherCache(
        model, pair.dataset().take(batch_size), batch_size, views=1
    )
    return fitted(model, next(iter(cache.train())))


def _keras(loss: Callable[[], keras.distillation.DistillationLoss], fused):
    def make(pair, batch_size):
        student, teacher = pair.networks(fused)
        model = keras.distillation.Distiller(
            teacher=teacher, student=student, distillation_losses=loss()
        )
        compile_model(model)
        return fitted(model, pair.batch(batch_size))

    return make


def _keras_logits():
    return keras.distillation.LogitsDistillation(
        temperature=4.0, loss=keras.losses.KLDivergence()
    )


def _keras_feature():
    return keras.distillation.FeatureDistillation(
        keras.losses.MeanSquaredError(),
        teacher_layer_name=HINT,
        student_layer_name=HINT,
    )


def _naive(fused):
    def make(pair, batch_size):
        student, teacher = pair.networks(fused)
        model = NaiveMHGD(student, teacher, mhan(pair, teacher), pair.points)
        compile_model(model)
        return fitted(model, pair.batch(batch_size))

    return make


# The processes of a group run side by side, so a group must fit into the memory
# of a laptop. Each group has the student, which all routes are compared with.
GROUPS = {
    "normalisation": {
        "student": _student(True),
        "student unfused": _student(False),
        "student without normalisation": _unnormalised,
    },
    "student and logits": {
        "student": _student(True),
        "teacher forward": _teacher,
        "soft logits": _ours(lambda pair: methods.SoftLogits()),
        "RKD": _ours(lambda pair: methods.RKD()),
    },
    "MHGD": {
        "student": _student(True),
        "MHGD": _ours(mhgd),
        "MHGD with XLA": _ours(mhgd, jit_compile=True),
        "MHGD per-feature": _ours(
            lambda pair: mhgd(pair, clipping="per_feature")
        ),
        "MHGD per-feature cached": _cached,
        "naive MHGD": _naive(True),
        "naive MHGD unfused": _naive(False),
    },
    "Keras": {
        "student": _student(True),
        "FitNet": _ours(
            lambda pair: methods.FitNet(preparation_epochs=0), [HINT]
        ),
        "attention transfer": _ours(
            lambda pair: methods.AttentionTransfer(), [HINT]
        ),
        "keras.distillation feature": _keras(_keras_feature, True),
        "keras.distillation feature unfused": _keras(_keras_feature, False),
        "keras.distillation logits": _keras(_keras_logits, True),
        "keras.distillation logits unfused": _keras(_keras_logits, False),
    },
}
TORCH = {
    "PyTorch student": "",
    "torchdistill soft logits": "soft logits",
    "torchdistill FitNet": "FitNet",
    "torchdistill RKD": "RKD",
}
ROUTES = {
    name: route for group in GROUPS.values() for name, route in group.items()
} | {"input": _input}


def names() -> list[str]:
    """Lists the names of all routes of a training step."""
    return list(dict.fromkeys(name for g in groups().values() for name in g))


def groups() -> dict[str, list[str]]:
    """Lists the names of routes that take turns, by name of their group."""
    made = {name: list(group) for name, group in GROUPS.items()}
    return made | {"PyTorch": ["student", *TORCH]}


def hosts(
    names: Iterable[str], pair: str, batch_size: int
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Gives the argument `hosts` of `contest` for these routes.

    Args:
        names: Routes; those whose packages are missing are left out.
        pair: A name in `PAIRS`.
        batch_size: Images in a batch.

    Returns:
        For each route, the function that makes it and its arguments.
    """
    made = {}
    for name in names:
        arguments = {"route": name, "batch_size": batch_size}
        if name in ROUTES:
            made[name] = f"{__name__}:make", arguments | {"pair": pair}
        elif installed():
            # The process of this route imports no TensorFlow.
            made[name] = (
                "benchmarks.speed.peer:make",
                arguments | {"loss": TORCH[name]} | PAIRS[pair].description(),
            )
    return made


def installed() -> bool:
    """Checks whether PyTorch and torchdistill are installed."""
    return all(
        importlib.util.find_spec(name) for name in ("torch", "torchdistill")
    )
