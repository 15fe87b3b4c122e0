import math
import pathlib
import statistics

import pytest

from training.reports import published, tables

ROOT = pathlib.Path(__file__).parents[2]


def trials(*accuracies, best=0.0):
    return [
        {"accuracy": each, "best_accuracy": each + best, "seconds": 90}
        for each in accuracies
    ]


@pytest.fixture
def made():
    """Alone 70 and 74 (mean 72, teacher 82: gap 10); gains 3 and 2."""
    return tables.rows(
        0.82,
        {"student": trials(0.70, 0.74), "mhgd": trials(0.73, 0.76, best=0.01)},
    )


def test_cells(made):
    """The gain's deviation is 0.7071, its 95 % interval 12.706 * 0.7071 /
    sqrt 2 = 6.353."""
    head, alone, mhgd = tables.cells(made, {})
    assert head == [
        "",
        "last epoch",
        "best epoch",
        "gain",
        "gap closed",
        "minutes",
    ]
    assert alone == ["student", "72.00 ± 2.83", "72.00 ± 2.83", "", "", "1.5"]
    assert mhgd == [
        "mhgd",
        "74.50 ± 2.12",
        "75.50 ± 2.12",
        "+2.50 ± 6.35",
        "25 %",
        "1.5",
    ]


def test_published_results_stand_beside(made):
    head, alone, mhgd = tables.cells(made, {"mhgd": "67.02"})
    assert (head[-1], alone[-1], mhgd[-1]) == ("published", "", "67.02")


def test_one_trial_has_no_spread():
    made = tables.rows(0.6, {"student": trials(0.7), "mhgd": trials(0.65)})
    *_, mhgd = tables.cells(made, {})
    assert mhgd == ["mhgd", "65.00", "65.00", "-5.00", "", "1.5"]
    assert "1 trial, teacher 60.00" in tables.legend(0.6, made)


def test_markdown_and_csv(made):
    lines = tables.markdown(tables.cells(made, {})).splitlines()
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
    assert lines[3].startswith("| mhgd | 74.50 ± 2.12 |")
    lines = tables.comma_separated(made).splitlines()
    assert lines[0] == "way,trial,last,best,gain,minutes"
    assert lines[1] == "student,0,70.0000,70.0000,,1.50"
    assert lines[4] == "mhgd,1,76.0000,77.0000,2.0000,1.50"


@pytest.mark.parametrize("count", [2, 3, 5, 31])
def test_interval_covers_95_percent(count):
    """By the density of Student's t, integrated."""
    values = [0.0] * (count - 1) + [1.0]
    freedom = count - 1
    t = tables.interval(values) / (statistics.stdev(values) / math.sqrt(count))
    norm = math.gamma((freedom + 1) / 2) / (
        math.sqrt(freedom * math.pi) * math.gamma(freedom / 2)
    )
    steps = 100_000
    inside = sum(
        (1 + ((i + 0.5) * t / steps) ** 2 / freedom) ** (-(freedom + 1) / 2)
        for i in range(steps)
    )
    assert math.isclose(2 * norm * inside * t / steps, 0.95, abs_tol=1e-4)


def test_literature():
    source, known = published.published("cifar100", "resnet32", "resnet8")
    assert "five trials" in source
    assert known["mhgd"] == "73.98 / 74.30"
    assert published.published("glyphs", "vgg_small", "resnet_small") == (
        "",
        {},
    )


def test_published_results_stand_in_the_docs():
    """And beside none of them, yet, one of ours."""
    page = (ROOT / "docs/published.md").read_text()
    assert page == published.text()
    assert "| mhgd | 67.02 |  |" in page
