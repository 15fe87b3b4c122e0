"""Every method on several devices, in other precisions, and for every task.

Several methods at once train for little more than one: here they are joined.
`python -m benchmarks.correctness.matrix` trains each by itself.
"""

import json

import keras
import numpy as np
import pytest

from benchmarks.correctness import conditions, matrix
from keras_mhgd import methods
from keras_mhgd.gradients import Sum
from keras_mhgd.transfer import require_one_rule

# How far several devices may be off, relative to the largest entry or to 1.
MOST = {"2 replicas, mixed_float16": 0.01, "2 replicas, mixed_bfloat16": 0.1}
# For workers: one of each kind, and no preparation but that of `recommended`.
A_THIRD = [
    *("mutual_learning", "dkd", "attention_transfer", "vid", "review_kd"),
    *("similarity_preserving", "kd_svd", "crd"),
]


def fits(way, row):
    """Whether a row trains beside others: only one may limit its gradient."""
    try:
        require_one_rule(methods.parts(f"{way}+{row}"))
    except ValueError:
        return False
    return True


def joined(rows):
    """Joins rows to as few ways of about the same length as there can be."""
    ways = []
    # First those that don't fit each other.
    for row in sorted(
        rows,
        key=lambda row: isinstance(methods.parts(row)[0].gradient_rule, Sum),
    ):
        fitting = [way for way in ways if fits(way, row)]
        if fitting:
            way = min(fitting, key=lambda way: way.count("+"))
            ways[ways.index(way)] = f"{way}+{row}"
        else:
            ways.append(row)
    return ways


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where what one device trains is kept."""
    return tmp_path_factory.mktemp("one_device")


# "recommended" has it. Its last sensing point is no map, which others need.
JOINED = [name for name in methods.names() if name != "mhgd_cross"]


def test_each_method_has_a_row_and_is_in_a_way():
    assert {*methods.names(), "recommended"} < set(matrix.rows())
    assert set("+".join(joined(JOINED)).split("+")) == set(JOINED)
    assert methods.name_of(methods.recommended()[0]) == "mhgd_cross"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "ways"),
    [
        ("2 replicas", [*joined(JOINED), "recommended"]),
        ("4 replicas", [*joined(JOINED), "recommended"]),
        ("2 workers", [*joined(A_THIRD), "recommended"]),
        ("2 replicas, mixed_float16", joined(JOINED)),
        ("2 replicas, mixed_bfloat16", joined(JOINED)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_method_is_off(column, ways, folder):
    """Data sets and arrays, an uneven last batch, both kinds of weights."""
    cells = matrix.COLUMNS[column](ways, folder)
    assert cells.keys() == set(ways)
    for way, cell in cells.items():
        assert not isinstance(cell, str), f"{way}: {cell}"
        assert cell < MOST.get(column, 1e-5), f"{way}: {cell}"


def test_a_table_has_a_row_a_method_and_a_column_a_condition():
    columns = {
        "a": {"mhgd": 1.26e-7, "rkd": 0.0, "other": 1.0},
        "b": {"mhgd": "X must be Y.", "rkd": "X must be Y."},
    }
    head, _, *lines = matrix.table(columns).splitlines()
    assert head == "|  | a | b |"
    assert "| mhgd | 1.3e-07 | [1] |" in lines
    assert "| rkd | yes | [1] |" in lines
    assert lines[-3:] == ["| other | 1.0e+00 |  |", "", "1. X must be Y."]
    assert len(lines) == len(matrix.rows()) + 3


@pytest.fixture(scope="module")
def page():
    return json.loads((matrix.RESULTS / "matrix.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("row", matrix.rows())
def test_other_precisions_and_ways_to_run(row):
    for condition, most in conditions.TOLERANCES.items():
        assert conditions.of_condition(row, condition) <= most, condition


@pytest.mark.slow
@pytest.mark.parametrize("row", matrix.rows())
def test_each_task_trains_or_is_refused_as_the_page_says(row, page):
    for task in conditions.SITUATIONS:
        assert conditions.of_task(row, task) == page[task][row], task


# Their terms depend on class numbers.
OF_CLASSES = {"dkd", "nkd", "rld", "crd"}


@pytest.mark.slow
@pytest.mark.parametrize("row", matrix.rows())
def test_images_without_labels_teach_and_mixed_labels_are_taken(row):
    """A weight of 0 takes the label away, and leaves the image in all terms."""
    x, y = conditions.data()
    plain = conditions.image_distiller(row)
    expected = conditions.step(plain, x, y)
    mixed = conditions.image_distiller(row)
    mixed.compile(
        keras.optimizers.SGD(0.001),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    shares = 0.7 * np.eye(3)[y] + 0.3 * np.eye(3)[(y + 1) % 3]
    weights = np.float32(np.arange(len(y)) % 2)
    found = conditions.step(mixed, x, shares.astype("float32"), weights)
    assert np.isfinite(list(found.values())).all(), found
    for term in plain.terms:
        if not term.startswith(tuple(OF_CLASSES)):
            assert found[term] == pytest.approx(expected[term], rel=1e-5), term
    assert found["task_loss"] != pytest.approx(expected["task_loss"], rel=1e-2)
