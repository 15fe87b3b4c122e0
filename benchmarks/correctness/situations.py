"""Defines small networks, data and correct losses for each kind of task.

A `Situation` holds what a user provides: networks, a batch and arguments of
`compile`. Its `soft_logits` computes the correct losses of the method of that
name, with weight 0.9 and temperature 4, by numpy in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

layers = keras.layers


class Situation(NamedTuple):
    """Holds the networks, batch and `compile` arguments of a task.

    Attributes:
        student: Makes the student.
        teacher: Makes the teacher, or several.
        x: Inputs.
        y: Labels; `None` for none.
        weight: Sample weights; `None` for none.
        task: Arguments of `compile`.
        soft_logits: Computes the method's terms from both predictions.
    """

    student: Callable[[], keras.Model]
    teacher: Callable[[], Any]
    x: Any
    y: Any
    weight: Any
    task: dict[str, Any]
    soft_logits: Callable[[Any, Any], dict[str, float]]


def softmax(z):
    """Computes probabilities of logits."""
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z):
    """Computes the probability of a logit."""
    return 1 / (1 + np.exp(-z))


def of_classes(student, teacher):
    """Computes T^2 KL(p_T || p_S) of logits at each position, with T = 4."""
    ours, theirs = (softmax(np.float64(z) / 4) for z in (student, teacher))
    return 16 * (theirs * np.log(theirs / ours)).sum(-1)


def of_labels(student, teacher):
    """Computes the divergence of `of_classes` for each independent label."""
    ours, theirs = (sigmoid(np.float64(z) / 4) for z in (student, teacher))
    return 16 * (
        theirs * np.log(theirs / ours)
        + (1 - theirs) * np.log((1 - theirs) / (1 - ours))
    )


def logit(p):
    """Computes the logit of a probability."""
    p = np.float64(p)
    return np.log(p) - np.log1p(-p)


def vectors(name, width, outputs, activation=None, seed=0):
    """Makes a network of vectors, with one output or several by name."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6,))
    for stage in (1, 2):
        x = layers.Dense(width, "tanh", name=f"stage{stage}")(x)
    heads = outputs if isinstance(outputs, dict) else {"head": outputs}
    made = {
        head: layers.Dense(
            count,
            activation,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.5),
            name=head,
        )(x)
        for head, count in heads.items()
    }
    single = not isinstance(outputs, dict)
    return keras.Model(inputs, made["head"] if single else made, name=name)


def segmenter(name, width, seed=0):
    """Makes a network that gives four probabilities at each pixel."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(
        width, 3, padding="same", activation="relu", name="stage1"
    )(x)
    x = layers.Conv2D(
        width, 3, 2, padding="same", activation="relu", name="stage2"
    )(x)
    x = layers.UpSampling2D()(x)
    x = layers.Conv2D(
        4,
        1,
        activation="softmax",
        kernel_initializer=keras.initializers.RandomNormal(stddev=2.0),
        name="head",
    )(x)
    return keras.Model(inputs, x, name=name)


def tagger(name, width, classes=3, masks=True, seed=0):
    """Makes a network that gives logits at each token; 0 is padding."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, width, mask_zero=masks, name="table")(x)
    for stage in (1, 2):
        x = layers.Dense(width, "tanh", name=f"stage{stage}")(x)
    head = layers.Dense(
        classes,
        kernel_initializer=keras.initializers.RandomNormal(stddev=2.0),
        name="head",
    )
    return keras.Model(inputs, head(x), name=name)


def pair(make, *arguments, **options):
    """Makes fields of a `Situation` for two networks of one kind."""
    return {
        "student": lambda: make("student", 6, *arguments, seed=1, **options),
        "teacher": lambda: make("teacher", 8, *arguments, seed=2, **options),
    }


RNG = np.random.default_rng(0)
COUNT = 8
X = RNG.normal(size=(COUNT, 6)).astype("float32")
CLASSES = np.arange(COUNT) % 4
VALUES = RNG.normal(size=(COUNT, 2)).astype("float32")
IMAGES = RNG.normal(size=(COUNT, 8, 8, 1)).astype("float32")
PIXELS = RNG.integers(0, 4, (COUNT, 8, 8))
PIXELS[:, :3] = 255
TOKENS = RNG.integers(1, 9, (COUNT, 6)).astype("int32")
for row, length in enumerate([6, 2, 3, 6, 4, 1, 5, 3]):
    TOKENS[row, length:] = 0
TAGS = RNG.integers(0, 3, (COUNT, 6))
NEXT = np.roll(TOKENS, -1, axis=1)
IS_NEXT = (NEXT > 0).astype("float32")
IS_NEXT[:, -1] = 0


def crossentropy(**options):
    """Makes a loss of class numbers."""
    return keras.losses.SparseCategoricalCrossentropy(**options)


def mean_divergence(divergence):
    """Makes `Situation.soft_logits`, a mean over all rows."""
    return lambda s, t: {"soft_logits": 0.9 * divergence(s, t).mean()}


def _masked(mask):
    return lambda s, t: {"soft_logits": 0.9 * of_classes(s, t)[mask].mean()}


def _segmentation(s, t):
    # The log of a softmax equals its logits up to a constant.
    found = of_classes(np.log(s), np.log(t))
    return {"soft_logits": 0.9 * found[PIXELS != 255].mean()}


def _cosine(s, t):
    s, t = (np.float64(z) / np.linalg.norm(z, axis=-1)[:, None] for z in (s, t))
    return {"soft_logits": 0.9 * (1 - (s * t).sum(-1)).mean()}


def _two_teachers(s, t):
    average = (softmax(np.float64(t[0])) + softmax(np.float64(t[1]))) / 2
    found = of_classes(np.float64(s), np.log(average))
    return {"soft_logits": 0.9 * found.mean()}


SITUATIONS = {
    "single_label": Situation(
        **pair(vectors, 4),
        x=X,
        y=CLASSES,
        weight=None,
        task={"loss": crossentropy(from_logits=True), "metrics": ["accuracy"]},
        soft_logits=mean_divergence(of_classes),
    ),
    "binary": Situation(
        **pair(vectors, 1, "sigmoid"),
        x=X,
        y=CLASSES % 2,
        weight=None,
        task={"loss": "binary_crossentropy", "metrics": ["accuracy"]},
        soft_logits=mean_divergence(lambda s, t: of_labels(logit(s), logit(t))),
    ),
    "multi_label": Situation(
        **pair(vectors, 5, "sigmoid"),
        x=X,
        y=RNG.integers(0, 2, (COUNT, 5)).astype("float32"),
        weight=None,
        task={"loss": keras.losses.BinaryCrossentropy()},
        soft_logits=mean_divergence(lambda s, t: of_labels(logit(s), logit(t))),
    ),
    "segmentation": Situation(
        **pair(segmenter),
        x=IMAGES,
        y=PIXELS,
        weight=None,
        task={"loss": crossentropy(ignore_class=255)},
        soft_logits=_segmentation,
    ),
    "tagging": Situation(
        **pair(tagger),
        x=TOKENS,
        y=TAGS,
        weight=None,
        task={"loss": crossentropy(from_logits=True), "metrics": ["accuracy"]},
        soft_logits=_masked(TOKENS > 0),
    ),
    "next_token": Situation(
        **pair(tagger, classes=9, masks=False),
        x=TOKENS,
        y=NEXT,
        weight=IS_NEXT,
        task={"loss": crossentropy(from_logits=True)},
        soft_logits=_masked(IS_NEXT > 0),
    ),
    "regression": Situation(
        **pair(vectors, 2),
        x=X,
        y=VALUES,
        weight=None,
        task={"loss": "mse", "metrics": ["mae"]},
        soft_logits=mean_divergence(lambda s, t: (np.float64(s) - t) ** 2),
    ),
    "embedding": Situation(
        **pair(vectors, 3),
        x=X,
        y=RNG.normal(size=(COUNT, 3)).astype("float32"),
        weight=None,
        task={"loss": keras.losses.CosineSimilarity()},
        soft_logits=_cosine,
    ),
    "two_heads": Situation(
        **pair(vectors, {"kind": 4, "size": 2}),
        x=X,
        y={"kind": CLASSES, "size": VALUES},
        weight=None,
        task={
            "loss": {"kind": crossentropy(from_logits=True), "size": "mse"},
            "metrics": {"kind": ["accuracy"]},
        },
        soft_logits=lambda s, t: {
            "soft_logits_kind": 0.9 * of_classes(s["kind"], t["kind"]).mean(),
            "soft_logits_size": 0.9 * ((s["size"] - t["size"]) ** 2).mean(),
        },
    ),
    "label_free": Situation(
        **pair(vectors, 4),
        x=X,
        y=None,
        weight=None,
        task={"loss": None},
        soft_logits=mean_divergence(of_classes),
    ),
    "two_teachers": Situation(
        student=pair(vectors, 4)["student"],
        teacher=lambda: [
            vectors("teacher", 8, 4, seed=2),
            vectors("other", 7, 4, seed=3),
        ],
        x=X,
        y=CLASSES,
        weight=None,
        task={"loss": crossentropy(from_logits=True)},
        soft_logits=_two_teachers,
    ),
}


def predictions(networks, x):
    """Computes the networks' outputs in a test, as arrays in any nesting."""
    if isinstance(networks, list):
        return [predictions(each, x) for each in networks]
    return keras.tree.map_structure(np.asarray, networks(x, training=False))
