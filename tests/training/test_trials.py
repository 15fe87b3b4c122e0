import keras_tuner
import pytest

from training.reports import pictures, search_report


def trial(number, score, message=None, **values):
    hp = keras_tuner.HyperParameters()
    hp.values = {"student": "resnet_small", "learning_rate": 0.1} | values
    made = keras_tuner.engine.trial.Trial(
        hp, str(number), "FAILED" if score is None else "COMPLETED", message
    )
    made.score = score
    return made


@pytest.fixture
def made():
    return search_report.rows(
        [
            trial(0, 0.5, method="mhgd", **{"mhgd/num_heads": 8}),
            trial(1, None, "Traceback\n  ...\nNaNError: loss\n", method="rkd"),
            trial(2, 0.625, method="rkd", **{"rkd/weight": 1 / 3}),
        ]
    )


def test_table(made):
    """The best first; what all trials have in common is left out."""
    assert search_report.cells(made)[1:] == [
        ["2", "62.50", "rkd", "weight=0.333"],
        ["0", "50.00", "mhgd", "num_heads=8"],
        ["1", "failed", "rkd", "NaNError: loss"],
    ]


def test_of_equal_trials_the_first_is_best():
    """A resumed search may have them in another order."""
    equal = [trial(number, 0.5, method="rkd") for number in (10, 9, 11)]
    assert [row["trial"] for row in search_report.rows(equal)] == [
        "9",
        "10",
        "11",
    ]


def test_files(made, tmp_path):
    search_report.write(tmp_path, made, "A search")
    lines = (tmp_path / "trials.csv").read_text().splitlines()
    assert lines[0].startswith("trial,status,val_accuracy,student,")
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "0", "1"]
    page = (tmp_path / "report.html").read_text()
    assert (
        "A search" in page
        and "NaNError: loss" in page
        and "image/svg+xml" in page
    )


def test_picture(made):
    in_order, over_rate = pictures.trials(made, "A search").axes
    assert [list(line.get_ydata()) for line in in_order.lines] == [
        [50.0],
        [62.5],
        [50.0, 62.5],  # best so far
    ]
    assert [list(line.get_xdata()) for line in over_rate.lines] == [[0.1]] * 2
