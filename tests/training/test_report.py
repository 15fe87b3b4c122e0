"""Pages are one file that nothing is missing from; see also `browser`."""

import numpy as np
import pytest

import keras_mhgd
from keras_mhgd.graph import GraphRecord
from tests.training.pages import assert_self_contained
from training.reports import confusions_section, pictures
from training.reports.run_report import run_page


@pytest.fixture
def rows():
    """Rows of three epochs; after the second the network wasn't tested."""
    return [
        {"epoch": 1, "loss": 2.0, "val_accuracy": 0.25, "clipped": 0.5},
        {"epoch": 2, "loss": 1.0, "clipped": 0.75},
        {"epoch": 3, "loss": 0.5, "val_accuracy": 0.5, "clipped": 1.0},
    ]


RESULT = {
    "accuracy": 0.5,
    "best_accuracy": 0.625,
    "epochs": 3,
    "parameters": 12345,
    "seconds": 90.0,
    "configuration": {"dataset": "<script>", "set": ["a=1", "b=2"]},
}


@pytest.fixture
def graphs():
    """Graphs of two edges, two heads and six samples of three classes."""
    rng = np.random.default_rng(0)

    def draw():
        weights = rng.random((2, 2, 6, 6))
        return weights / weights.sum(axis=-1, keepdims=True)

    return GraphRecord(
        edges=np.array(["a → b", "b → <c>"]),
        classes=np.array(["x", "x", "&", "&", "z", "z"]),
        images=rng.integers(0, 255, (6, 8, 8, 1)).astype(np.uint8),
        teacher=draw(),
        before=draw(),
        student=draw(),
        epochs=np.array([0, 3]),
        differences=rng.random((2, 2)),
        divergences=rng.random((2, 2)),
    )


def test_a_runs_page(dataset, rows, graphs):
    predicted = np.array([0, 1, 1, 1, 2, 0])
    text = run_page("a & b", RESULT, rows, dataset, predicted, graphs)
    page = assert_self_contained(text)
    for part in ("a &amp; b", "50.00 %", "62.50 %", "12,345", "a=1\nb=2"):
        assert part in text
    assert "b → &lt;c&gt;" in text
    assert "&lt;script&gt;" in text
    # Losses, test accuracy, clipped share; both distances of the graphs.
    assert len(page.drawings) == 5
    assert "test accuracy 50" in page.drawings[0]
    # Panels and heads of two edges, three samples with twice six images, and
    # one image for each of the two errors.
    assert page.tags.count("img") == 5 + 2 * 4 + 2 * 2 + 3 * 13 + 2
    assert "Attention" not in run_page("", RESULT, rows, dataset, predicted)


@pytest.fixture
def dataset():
    """Six test images of three classes."""
    x = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
    y = np.array([0, 0, 1, 1, 2, 2], np.int32)
    return keras_mhgd.data.Dataset("six", x, y, x, y, ("<a>", "b", "c"))


def test_confusions_are_counted(dataset):
    predicted = np.array([0, 1, 1, 1, 2, 0])
    counts = confusions_section.confusions(dataset, predicted)
    np.testing.assert_array_equal(counts, [[1, 1, 0], [0, 2, 0], [1, 0, 1]])
    found = confusions_section.of_run(dataset, predicted)
    assert [(each["true"], each["predicted"]) for each in found] == [
        ("<a>", "b"),
        ("c", "<a>"),
    ]
    assert all(each["text"] == "1 of 2 images" for each in found)
    text = run_page("", RESULT, [], dataset, predicted)
    assert "&lt;a&gt; → b" in text and "c → &lt;a&gt;" in text
    assert confusions_section.of_run(dataset, dataset.y_test) == []
    assert "None." in run_page("", RESULT, [], dataset, dataset.y_test)


def test_confusions_that_distillation_fixed_and_added(dataset):
    """Of two trials alone both take c for a once; distilled, b for c."""
    alone = [np.array([0, 0, 1, 1, 2, 0]), np.array([0, 1, 1, 1, 2, 0])]
    way = [np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 1, 2, 2, 2])]
    found = confusions_section.of_comparison(dataset, alone, way, "<way>")

    def pairs(kind):
        return [(each["true"], each["predicted"]) for each in found[kind]]

    assert pairs("fixed") == [("c", "<a>"), ("<a>", "b")]
    assert pairs("added") == [("b", "c")]
    errors = [each["bars"] for each in found["fixed"]]
    assert errors == [
        [("before", 1.0, 1.0), ("after", 0.0, 0.0)],
        [("before", 0.5, 0.5), ("after", 0.0, 0.0)],
    ]
    assert [list(each["images"]) for each in found["fixed"]] == [[5], [1]]
    assert (found["before"], found["after"]) == (1.5, 1.0)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[0.3], [5.0, 5.0], [1e-9, 1e-7], [0.1, 273.0], [0.0, 0.0], [-1.0, 2.0]],
)
def test_curves_hold_all_values(values, log):
    points = list(enumerate(values))
    figure = pictures.curves({"a < b": points, "none": []}, log=log)
    kept = [(x, y) for x, y in points if y > 0 or not log]
    if not kept:
        assert figure is None
        return
    (axes,) = figure.axes
    (line,) = axes.lines
    assert list(zip(*line.get_data(), strict=True)) == kept
    low, high = axes.get_ylim()
    assert low <= min(y for _, y in kept) <= max(y for _, y in kept) <= high
    assert line.get_label() == f"a < b {kept[-1][1]:.4g}"
    assert (axes.get_yscale() == "log") == log


def test_twelve_curves_differ_in_colour_and_line():
    """The first six differ in colour alone."""
    figure = pictures.curves({f"{i}": [(1, 0.5), (2, 0.6)] for i in range(12)})
    (axes,) = figure.axes
    styles = [(each.get_color(), each.get_linestyle()) for each in axes.lines]
    assert len(styles) == len(set(styles)) == 12
    assert len({colour for colour, _ in styles[:6]}) == 6
