"""Every method on several devices, in other precisions, and for every task."""

import json

import pytest

from benchmarks import conditions, matrix
from keras_mhgd import methods

# What several devices may be off, relative to the largest entry or to 1.
MOST = 1e-5
# Of each third method more is asked: it takes a while.
SOME = [*matrix.rows()[::3], "recommended"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where what one device trains is kept."""
    return tmp_path_factory.mktemp("one_device")


def test_each_method_has_a_row():
    assert set(methods.names()) < set(matrix.rows())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "rows"),
    [
        ("2 replicas", matrix.rows()),
        ("4 replicas", SOME),
        ("2 workers", SOME),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_no_method_is_off(column, rows, folder):
    """Data sets and arrays, an uneven last batch, both kinds of weights."""
    cells = matrix.COLUMNS[column](rows, folder)
    assert cells.keys() == set(rows)
    off = {
        row: cell
        for row, cell in cells.items()
        if isinstance(cell, str) or not cell < MOST
    }
    assert not off


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


@pytest.mark.parametrize("row", matrix.rows())
def test_other_precisions_and_ways_to_run(row):
    for condition, most in conditions.TOLERANCES.items():
        assert conditions.of_condition(row, condition) <= most, condition


@pytest.mark.parametrize("row", matrix.rows())
def test_each_task_trains_or_is_refused_as_the_page_says(row, page):
    for task in conditions.SITUATIONS:
        assert conditions.of_task(row, task) == page[task][row], task
