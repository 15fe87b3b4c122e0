"""Pages are one file that nothing is missing from; see also `browser`."""

import re
import xml.etree.ElementTree as tree

import numpy as np
import pytest

import keras_mhgd
from keras_mhgd.graph import GraphRecord
from tests.training.pages import assert_self_contained
from training import charts, confusions, report


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
    page, svgs = assert_self_contained(
        report.of_run("a & b", RESULT, rows, dataset, predicted, graphs)
    )
    text = report.of_run("a & b", RESULT, rows, dataset, predicted, graphs)
    for part in ("a &amp; b", "50.00 %", "62.50 %", "12,345", "a=1\nb=2"):
        assert part in text
    assert "b → &lt;c&gt;" in text
    assert "&lt;script&gt;" in text
    # Losses, test accuracy, clipped share; both distances of the graphs.
    assert len(svgs) == 5
    assert "test accuracy <b>50 %</b>" in text
    # Panels and heads of two edges, three samples with twice six images, and
    # one image for each of the two errors.
    assert page.tags.count("img") == 2 * 4 + 2 * 2 + 3 * 13 + 2
    assert "Attention" not in report.of_run(
        "", RESULT, rows, dataset, predicted
    )


@pytest.fixture
def dataset():
    """Six test images of three classes."""
    x = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
    y = np.array([0, 0, 1, 1, 2, 2], np.int32)
    return keras_mhgd.data.Dataset("six", x, y, x, y, ("<a>", "b", "c"))


def test_confusions_are_counted(dataset):
    predicted = np.array([0, 1, 1, 1, 2, 0])
    counts = confusions.confusions(dataset, predicted)
    np.testing.assert_array_equal(counts, [[1, 1, 0], [0, 2, 0], [1, 0, 1]])
    text = confusions.of_run(dataset, predicted)
    assert text.count("1 of 2 images") == 2
    assert "&lt;a&gt; → b" in text and "c → &lt;a&gt;" in text
    assert "None." in confusions.of_run(dataset, dataset.y_test)


def test_confusions_that_distillation_fixed_and_added(dataset):
    """Of two trials alone both take c for a once; distilled, b for c."""
    alone = [np.array([0, 0, 1, 1, 2, 0]), np.array([0, 1, 1, 1, 2, 0])]
    way = [np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 1, 2, 2, 2])]
    text = confusions.of_comparison(dataset, alone, way, "<way>")
    fixed, added = text.split("Most added")
    pairs = re.findall(r"<b>(.*?)</b>", fixed)
    assert pairs == ["c → &lt;a&gt;", "&lt;a&gt; → b"]
    assert re.findall(r"</i>([\d.]+)<", fixed) == ["1.0", "0.0", "0.5", "0.0"]
    assert re.findall(r'alt="test image (\d)', fixed) == ["5", "1"]
    assert re.findall(r"<b>(.*?)</b>", added) == ["b → c"]
    assert "of 2 errors, 1 are left" in text


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[0.3], [5.0, 5.0], [1e-9, 1e-7], [0.1, 273.0], [0.0, 0.0], [-1.0, 2.0]],
)
def test_lines_lie_within_the_chart(values, log):
    points = list(enumerate(values))
    svg = charts.lines("a < b", {"s": points}, log=log)
    if log and max(values) <= 0:
        assert svg == ""
        return
    drawing = tree.fromstring(svg[svg.index("<svg") : svg.index("</svg>") + 6])
    _, _, width, height = map(float, drawing.get("viewBox").split())
    for circle in drawing.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= width
        assert 0 <= float(circle.get("cy")) <= height - 28
    path = next(
        each for each in drawing.iter("path") if each.get("class") == "line"
    )
    for _, y in re.findall(r"([\d.-]+) ([\d.-]+)", path.get("d")):
        assert 0 <= float(y) <= height - 28


def test_strips_hold_all_values():
    text = charts.strips({"way": [1.0, 3.0]}, {"alone": 1.0, "teacher": 5.0})
    left = [float(value) for value in re.findall(r"left:([\d.]+)%", text)]
    assert left == pytest.approx([3.7, 96.3, 3.7, 50, 26.85], abs=0.01)
    assert "<b>2.00</b>" in text
