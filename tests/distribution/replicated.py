"""Trains on one device and on several; prints how far the two are apart.

python -m tests.distribution.replicated <devices> <method>,<images>[,<loss>] ...

In a process of its own: TensorFlow must see the processor as several devices
from the start, and takes only one strategy. It prints a number of the weights
too. With TF_CONFIG it is one of several workers; the chief tells how far.
"""

import contextlib
import json
import os
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from benchmarks.correctness.devices import difference, strategy_of
from keras_mhgd import methods
from keras_mhgd.distribution import fitting

BATCH, STEPS = 16, 20


class InHalves(methods.MHGD):
    """Does on one device what two do that have graphs of their own."""

    def call(self, *features):
        terms = [
            super(InHalves, self).call(*tf.nest.map_structure(half, features))[
                "mhgd"
            ]
            for half in (
                lambda x: x if x is None else tf.split(x, 2)[0],
                lambda x: x if x is None else tf.split(x, 2)[1],
            )
        ]
        mean = self.variant.reduction == "mean"
        return {"mhgd": tf.add_n(terms) / (2 if mean else 1)}


def in_replicas(reduction):
    several = tf.distribute.has_strategy()
    return (methods.MHGD if several else InHalves)(
        num_heads=2,
        preparation_epochs=1,
        graph_scope="replica",
        variant={"reduction": reduction},
    )


METHODS = {
    "replica sum": lambda: in_replicas("sum"),
    "replica mean": lambda: in_replicas("mean"),
    # Not all at once: changed by 1e-7, such a training differs by 1e-3.
    "outputs and graphs": lambda: [
        methods.MHGD(num_heads=2, preparation_epochs=1),
        "soft_logits",
        keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence()),
    ],
    "embeddings": lambda: ["rkd", "crd"],
    "per_feature": lambda: methods.MHGD(
        num_heads=2, preparation_epochs=1, clipping="per_feature"
    ),
    # Of so many channels that the SVD iterates.
    "wide maps": lambda: methods.MHGD(num_heads=2, preparation_epochs=1),
    "as published": lambda: [
        methods.FitNet(preparation_epochs=1),
        methods.ActivationBoundaries(preparation_epochs=1),
    ],
}


LOSSES = {
    "": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "sum": lambda: keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="sum"
    ),
    "weighted mean": lambda: keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    ),
    "function": lambda: cross_entropy,
}
LOSSES["a bad batch"] = LOSSES[""]
LOSSES["no labels"] = lambda: None
LOSSES["made labels"] = LOSSES["validated"] = LOSSES[""]
LOSSES["an overflow"] = LOSSES[""]
LOSSES["cached"] = lambda: keras.losses.CategoricalCrossentropy(
    from_logits=True
)


def cross_entropy(labels, outputs):
    return keras.losses.sparse_categorical_crossentropy(
        labels, outputs, from_logits=True
    )


class Labelling(keras.layers.Layer):
    """Makes labels of the images, as preprocessors of language models do."""

    def call(self, x, y=None, sample_weight=None):
        sums = tf.abs(tf.reduce_sum(x, axis=[1, 2, 3]))
        return x, tf.cast(sums, tf.int32) % 3, sample_weight


def optimizer(loss):
    sgd = keras.optimizers.SGD(0.001 if loss == "sum" else 0.01, 0.9)
    if loss != "an overflow":
        return sgd
    return keras.optimizers.LossScaleOptimizer(
        sgd, initial_scale=2.0**110, dynamic_growth_steps=4
    )


def halved(epoch, rate):
    return rate / 2 if epoch == 2 else rate


def network(synchronized, seed, widths):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 1))
    for stage, width in enumerate(widths, start=1):
        x = keras.layers.Conv2D(
            width,
            3,
            strides=stage,
            padding="same",
            kernel_regularizer=keras.regularizers.L2(1e-3),
        )(x)
        x = keras.layers.BatchNormalization(synchronized=synchronized)(x)
        x = keras.layers.ReLU(name=f"stage{stage}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))


def mixed_views(distiller, x, y):
    """Streams mixed views with the largest of the teacher's logits."""
    x = np.clip(128 + 60 * x, 0, 255).astype("uint8")
    y = y.astype("int32")
    dataset = keras_mhgd.data.Dataset(
        "noise", x, y, x, y, ("a", "b", "c"), padding=1
    ).augmented("crop", mixing=keras_mhgd.data.Mixing())
    cache = keras_mhgd.TeacherCache(distiller, dataset, BATCH, 2, top_k=1)
    return cache.train(), dataset.steps_per_epoch(BATCH)


def scope_of(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()


def trained(strategy, method, count, loss=""):
    count = int(count)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 8, 8, 1)).astype("float32")
    y = rng.integers(0, 3, count)
    weight = rng.uniform(0, 2, count)
    if loss == "an overflow":  # of the scaled loss, on the second device
        weight[28] = 1e10
    bad = loss == "a bad batch"
    if bad:  # on one of the devices
        x[20] = np.nan
    with scope_of(strategy):
        widths = (32, 32) if method == "wide maps" else (4, 6)
        teacher, student = network(False, 1, widths), network(True, 2, widths)
        for layer in student.layers:
            # Statistics of a batch would tell all devices of the overflow.
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = loss != "an overflow"
        keras.utils.set_random_seed(3)
        made = METHODS.get(method, lambda: method)()
        points = ["stage1", "stage2", "logits"]
        if method == "as published":  # of maps with a ReLU
            points = points[:2]
        made_labels = loss == "made labels"
        preprocessor = Labelling() if made_labels else None
        distiller = keras_mhgd.Distiller(
            student, teacher, made, points, student_preprocessor=preprocessor
        )
        distiller.compile(
            optimizer(loss),
            LOSSES[loss](),
            metrics=["accuracy"],
            nonfinite="skip" if bad else "raise",
        )
    validation = {}
    if "TF_CONFIG" in os.environ or loss == "validated":
        # The last batch is of one image, the second device's none.
        validation = {
            "validation_data": (x[: BATCH + 1], y[: BATCH + 1]),
            "callbacks": [keras.callbacks.LearningRateScheduler(halved)],
        }
    labelled = loss not in ("no labels", "made labels")
    first = {}
    if made_labels:  # before any metric is built
        first = distiller.evaluate(x, batch_size=BATCH, verbose=0)
        first = {"first": first}
    arguments = {
        "epochs": -(-STEPS * BATCH // count),
        "shuffle": False,
        "verbose": 0,
        **validation,
    }
    if loss == "cached":
        stream, steps = mixed_views(distiller, x, y)
        fitted = distiller.fit(stream, steps_per_epoch=steps, **arguments)
    else:
        fitted = distiller.fit(
            x,
            y if labelled else None,
            sample_weight=weight if labelled else None,
            batch_size=BATCH,
            **arguments,
        )
    history = fitted.history
    if validation:
        found = distiller.evaluate(x, y, verbose=0, return_dict=True)
        history |= {f"evaluated_{name}": found[name] for name in found}
    if loss == "validated":  # with an image for one of the devices alone
        history["predicted"] = distiller.predict(
            x[: BATCH + 1], batch_size=BATCH, verbose=0
        )
        for eager in (False, True):
            with scope_of(strategy):
                student.compile(loss=LOSSES[loss](), run_eagerly=eager)
            found = fitting.evaluate(student, x[:1], y[:1], verbose=0)
            history[f"eager {eager}"] = found
    history |= first
    numbers = {name: np.array(values) for name, values in history.items()}
    weights = student.get_weights()
    for each in distiller.methods:
        weights += each.get_weights()
    if loss == "an overflow":  # lowers the scale; four steps without raise it
        weights.append(np.log2(distiller.optimizer.dynamic_scale.numpy()))
    return numbers | {str(i): each for i, each in enumerate(weights)}


def main(devices, *cases):
    strategy = strategy_of(devices)
    differences, sums = {}, {}
    for case in cases:
        several = trained(strategy, *case.split(","))
        sums[case] = keras_mhgd.reuse.teacher_cache.fingerprint(
            *several.values()
        )
        with strategy.scope():
            if not keras_mhgd.distribution.replicas.is_chief():
                continue
        one = trained(None, *case.split(","))
        differences[case] = difference(one, several)
    with strategy.scope():
        keras_mhgd.distribution.replicas.wait_for_workers()
    print(json.dumps(sums))
    print(json.dumps(differences))


if __name__ == "__main__":
    main(*sys.argv[1:])
