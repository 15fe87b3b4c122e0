import numpy as np
import pytest

import keras_mhgd
from training import pictures, report, results


def rows(*accuracies):
    """Rows of epochs; `None` where the network wasn't tested."""
    return [
        {"epoch": i, "loss": 2.0 / i}
        | ({} if accuracy is None else {"val_accuracy": accuracy})
        for i, accuracy in enumerate(accuracies, start=1)
    ]


def test_summary():
    """Alone 70 and 74 (mean 72, teacher 82: gap 10); gains 3 and 2."""
    table = results.summary(
        0.82, {"alone": [0.70, 0.74], "MHGD": [0.73, 0.76]}
    ).splitlines()
    assert table[0] == "|  | seed 0 | seed 1 | mean | gap closed |"
    assert table[2] == "| alone | 70.00 | 74.00 | 72.00 ± 2.83 |  |"
    assert table[3] == "| MHGD | 73.00 | 76.00 | 74.50 ± 2.12 |  |"
    assert table[4] == "| MHGD, gain | +3.00 | +2.00 | +2.50 ± 0.71 | 25% |"
    assert table[6].endswith("Teacher: 82.00.")


def test_summary_of_one_trial():
    table = results.summary(0.8, {"alone": [0.7], "MHGD": [0.65]})
    assert "| MHGD, gain | -5.00 | -5.00 | -50% |" in table


def test_measure():
    glyphs = keras_mhgd.data.load("glyphs", subset=100)
    right = np.eye(100)[glyphs.y_test]
    right[:500] = np.roll(right[:500], 1, axis=1)
    assert results.measure(lambda _: right, glyphs) == 0.9
    with pytest.raises(ValueError, match=r"each of the 100 classes .*\(10,\)"):
        results.measure(lambda _: right[:, :10], glyphs)


def test_comparison_is_a_picture(tmp_path):
    path = tmp_path / "result.png"
    curves = {
        "alone": [rows(0.1, 0.5)] * 2,
        "MHGD": [rows(None, 0.2, 0.6)] * 2,
    }
    pictures.comparison(path, curves, 0.8, "title")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_report_is_one_page_and_escapes():
    result = {
        "accuracy": 0.5,
        "best_accuracy": 0.625,
        "epochs": 2,
        "parameters": 12345,
        "seconds": 90.0,
        "configuration": {"dataset": "<script>"},
    }
    page = report.page("a & b", result, rows(0.25, None, 0.5))
    for part in ("a &amp; b", "50.00 %", "62.50 %", "12,345", "<svg"):
        assert part in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
