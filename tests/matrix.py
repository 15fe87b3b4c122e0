"""Every method under every condition: a number, or why there is none.

python -m tests.matrix [<file>]

Prints the table of docs/matrix.md, or writes the file. A cell is how far the
losses of a step, or the weights after it, are from those in float32 on one
device; of a task that they are finite; or the refusal.
"""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from keras_mhgd import methods
from tests.situations import SITUATIONS

ROWS = [
    *methods.names(),
    "recommended",
    "mhgd+soft_logits",
    "fitnet+dkd",
]
# The largest difference that is allowed, relative to the largest entry or 1.
TOLERANCES = {
    "run_eagerly": 1e-5,
    "steps_per_execution": 1e-5,
    "mixed_bfloat16": 0.1,
    "mixed_float16": 0.02,
}
TASKS = list(SITUATIONS)
COUNT = 8


def small(row):
    """The method of a row, with little to learn before the student."""
    method = methods.get(row)
    for part in method.parts():
        for name, value in (
            ("preparation_epochs", 1),
            ("num_heads", 2),
            ("bank_size", 32),
        ):
            if getattr(part, name, 0):
                setattr(part, name, value)
    return method


def network(width, seed):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((8, 8, 1))
    for stage in (1, 2):
        x = keras.layers.Conv2D(
            width,
            3,
            strides=stage,
            padding="same",
            activation="relu",
            name=f"stage{stage}",
        )(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 8, 8, 1)).astype("float32")
    return x, np.arange(COUNT) % 3


def image_distiller(row, policy="float32", **options):
    keras.config.set_dtype_policy(policy)
    try:
        teacher, student = network(6, 1), network(4, 2)
        keras.utils.set_random_seed(3)
        distiller = keras_mhgd.Distiller(
            student, teacher, small(row), ["stage1", "stage2"]
        )
    finally:
        keras.config.set_dtype_policy("float32")
    distiller.compile(
        keras.optimizers.SGD(0.001),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return distiller


def step(distiller, *batch):
    """One step without tracing: its losses by name."""
    batch = keras.tree.map_structure(
        lambda x: None if x is None else tf.convert_to_tensor(x), batch
    )
    logs = distiller.train_step(batch)
    return {name: float(value) for name, value in logs.items()}


def losses(row, condition):
    """The losses of a step, or of a short `fit`, and the weights after it."""
    if condition.startswith("mixed"):
        distiller = image_distiller(row, condition)
        found = step(distiller, *data())
        return {name: found[name] for name in distiller.method.terms}
    if condition == "run_eagerly":
        distiller = image_distiller(row)
        found = step(distiller, *data())
    else:
        options = {}
        if condition == "steps_per_execution":
            options = {"steps_per_execution": 2}
        distiller = image_distiller(row, **options)
        for part in distiller.method.parts():  # as it begins
            if not part.prepared:
                part._prepared.assign(1.0)
        batches = tf.data.Dataset.from_tensors(data())
        history = distiller.fit(batches, verbose=0, shuffle=False).history
        found = {name: values[0] for name, values in history.items()}
    weights = distiller.student.get_weights()
    return found | {str(i): each for i, each in enumerate(weights)}


def difference(a, b):
    """Largest difference, relative to the largest entry or to 1."""
    return max(
        float(np.abs(np.subtract(a[name], b[name])).max())
        / max(1.0, float(np.abs(a[name]).max()))
        for name in a
        if name in b
    )


def cells(row):
    """All cells of a method, by column."""
    expected = losses(row, "fit")
    found = {}
    for condition in TOLERANCES:
        found[condition] = difference(losses(row, condition), expected)
    for task in TASKS:
        found[task] = of_task(row, SITUATIONS[task])
    return found


def of_task(row, situation):
    """Whether the losses of a step are finite, or the refusal."""
    try:
        distiller = keras_mhgd.Distiller(
            situation.student(), situation.teacher(), small(row)
        )
        distiller.compile(keras.optimizers.SGD(0.001), **situation.task)
        found = step(distiller, situation.x, situation.y, situation.weight)
    except ValueError as error:
        return str(error)
    terms = [found[term] for term in distiller.method.terms]
    return bool(terms) and bool(np.isfinite(terms).all())


def table(found):
    """The matrix as Markdown, with each refusal once below it."""
    columns = [*TOLERANCES, *TASKS]
    numbers, lines = {}, []
    for row, of_row in found.items():
        entries = []
        for column in columns:
            cell = of_row[column]
            if isinstance(cell, str):
                number = numbers.setdefault(reason(cell), len(numbers) + 1)
                entries.append(f"[{number}]")
            else:
                entries.append("yes")
        lines.append([f"`{row}`", *entries])
    rows = [["method", *columns], ["---"] * (1 + len(columns)), *lines]
    text = "\n".join(f"| {' | '.join(each)} |" for each in rows)
    notes = "\n".join(f"{n}. {why}" for why, n in numbers.items())
    return f"{text}\n\n{notes}\n"


def reason(message):
    """What a refusal says, without what was received."""
    return message.split(" Received:")[0]


def main(path=None):
    found = {}
    for number, row in enumerate(ROWS):
        found[row] = cells(row)
        print(f"{number + 1} of {len(ROWS)}: {row}", file=sys.stderr)
    text = table(found)
    if path is None:
        print(text)
        return
    page = pathlib.Path(path)
    head, _, _ = page.read_text().partition("| method |")
    page.write_text(head + text)


if __name__ == "__main__":
    main(*sys.argv[1:])
