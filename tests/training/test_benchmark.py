"""The benchmark: its arithmetic and its tables; a small run of the program."""

import json
import re

import pytest

from benchmarks.speed import contest, presentation
from benchmarks.speed.bars import bars
from benchmarks.speed.spread import CPU, Spread, ratio, seconds
from tests.training.launcher import launch


def rounds(**routes):
    """Rounds of `name=(wall, wall, ...)`; CPU seconds are twice as much."""
    return [
        {
            name.replace("_", " "): [wall, 2 * wall]
            for name, wall in zip(routes, walls, strict=True)
        }
        for walls in zip(*routes.values(), strict=True)
    ]


def steps(**routes):
    made = rounds(**routes)
    return {"rounds": made, "peaks": dict.fromkeys(made[0], 512.25)}


@pytest.fixture
def results():
    """MHGD takes 2, 3 and 2.5 of the student, the naive route 6, 6 and 4 of
    MHGD."""
    return {
        "steps/glyphs/MHGD": steps(
            student=(1.0, 2.0, 4.0),
            MHGD=(2.0, 6.0, 10.0),
            naive_MHGD=(12.0, 36.0, 40.0),
        ),
        "graph/4096": {"megabytes": 400.0, "seconds": 1.0},
        "graph/8192": {"megabytes": 1100.0, "seconds": 4.0},
        "imports": {"seconds": [0.1, 2.0, 0.4]},
    }


def test_ratios_are_formed_within_a_round():
    """1/2, 2/1, 6/3: the median is 2, where that of the times is 1."""
    made = rounds(a=(1.0, 2.0, 6.0), b=(2.0, 1.0, 3.0))
    assert ratio(made, "a", ["b"]) == Spread(2.0, 0.5, 2.0)
    assert seconds(made, "a") == 2.0
    assert seconds(made, "a", CPU) == 4.0


def test_ratio_over_a_sum():
    """6 / (1 + 2) and 8 / (1 + 1)."""
    made = rounds(a=(6.0, 8.0), b=(1.0, 1.0), c=(2.0, 1.0))
    assert ratio(made, "a", ["b", "c"]) == Spread(3.0, 2.0, 4.0)
    assert str(Spread(3.0, 2.0, 4.0)) == "3.00 (2.00 to 4.00)"


def test_bars(results):
    """1100 / 400 = 2.75; imports take 0.1, 0.4 and 2 s."""
    assert [(each.what, each.reached, each.met) for each in bars(results)] == [
        ("glyphs: naive MHGD over MHGD", "6.00 (4.00 to 6.00)", True),
        (
            "import keras_mhgd after import keras, s",
            "0.40 (0.10 to 2.00)",
            False,
        ),
        ("graph loss at N = 4096, 8 heads: memory", "400 MB", True),
        ("graph loss: memory at 8192 over 4096", "2.8", False),
    ]


def test_bars_of_all_sections():
    shapes = ("256 x 64", "64 x 128", "784 x 16", "16 x 256")
    shapes += ("196 x 256", "49 x 64")
    solvers = {"tf.linalg.svd": 7.0, "eigendecomposition": 0.9, "ours": 1.0}
    times = {
        f"{shape}, {solver}": [0.0, cpu]
        for shape in shapes
        for solver, cpu in solvers.items()
    }
    found = bars(
        {
            "parts/wrn/per_variable": steps(
                step=(5.0,), teacher=(2.0,), two_backwards=(2.0,)
            ),
            "vectors/one thread": {"rounds": [times]},
            "accuracy/wrn": {"a": [1e-4, 2e-2], "b": [5e-4, 1e-3]},
            "fusion/wrn": {"weights": 2e-5, "statistics": 2e-4},
            "input/wrn": steps(student=(1.0,), input=(0.1,)),
            "compile/wrn/RKD": {
                "plain": {"seconds": 3.0, "loss": 2.0},
                "compiled": {"seconds": 70.0, "loss": 2.001},
            },
        }
    )
    assert [each.met for each in found] == [
        *(True, True, True),  # 1.25; 7 and 7
        *(False, False, False, False),  # 0.9
        *(True, False),  # 5e-4 and 2e-2
        *(True, False),  # 2e-5 and 2e-4
        *(True, False),
    ]


def test_page(results):
    text = presentation.text(results, "A machine.", batch_size=128)
    assert "A machine. Batches of 128." in text
    assert "| glyphs: naive MHGD over MHGD | at least 2 |" in text
    line = "| MHGD | 6000.0 | 2.50 (2.00 to 3.00) | 21 | 12000.0 | 512 |\n"
    assert line in text
    assert "| 4096 | 400 | 1.000 |\n" in text


def test_comma_separated(results):
    lines = presentation.comma_separated(results).splitlines()
    assert lines[0] == "task,route,round,seconds,cpu_seconds"
    assert lines[1] == "steps/glyphs/MHGD,student,0,1.000000,2.000000"
    assert len(lines) == 10


def test_picture(results):
    axes = presentation.picture(results).axes
    assert [each.get_title() for each in axes] == ["glyphs"]
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == ["naive MHGD", "MHGD", "student"]
    widths = [bar.get_width() for bar in axes[0].patches]
    assert widths == [12.0, 2.5, 1.0]


def test_contest(capsys):
    """Routes of one process take turns with that of another."""
    maker = "tests.training.makers:counting"
    hosts = {
        "two": (maker, {"names": ["a", "b"]}),
        "one": (maker, {"names": ["c"]}),
    }
    result = contest.contest(hosts, 2, 5, 1, "title")
    assert len(result["rounds"]) == 2
    for each in result["rounds"]:
        assert {name: wall for name, (wall, _) in each.items()} == {
            "a": 5,
            "b": 5,
            "c": 5,
        }
        processes = {name: process for name, (_, process) in each.items()}
        assert processes["a"] == processes["b"] != processes["c"]
    assert result["peaks"].keys() == {"two", "one"}
    assert all(peak > 1 for peak in result["peaks"].values())
    assert "title: round 2 of 2" in capsys.readouterr().out


def test_contest_tells_which_process_failed():
    hosts = {"a route": ("tests.training.makers:failing", {})}
    with pytest.raises(RuntimeError, match="'a route' must answer.* code 3"):
        contest.contest(hosts, 1, 1, 1, "title")


def benchmark(folder, *arguments, fails=False):
    code, output = launch(
        "benchmarks.speed",
        f"--run={folder}",
        "--pairs=glyphs",
        "--routes=student,MHGD per-feature cached",
        "--rounds=2",
        "--steps=1",
        "--batch_size=16",
        *arguments,
    )
    assert (code != 0) == fails, output
    return output


@pytest.mark.slow
def test_the_program_resumes(tmp_path):
    done = {
        "steps/glyphs/student and logits": steps(student=(1.0,), RKD=(2.0,))
    }
    (tmp_path / "benchmark.json").write_text(json.dumps(done))
    output = benchmark(tmp_path, "--sections=steps")
    assert "steps/glyphs/MHGD: round 2 of 2" in output
    assert "student and logits: round" not in output
    results = json.loads((tmp_path / "benchmark.json").read_text())
    assert [*results] == [
        "steps/glyphs/student and logits",
        "steps/glyphs/MHGD",
    ]
    assert all(
        wall > 0 and cpu > 0
        for each in results["steps/glyphs/MHGD"]["rounds"]
        for wall, cpu in each.values()
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        ".lock",
        "benchmark.csv",
        "benchmark.json",
        "benchmark.md",
        "benchmark.png",
        "config.json",
    }
    assert (
        "| MHGD per-feature cached |" in (tmp_path / "benchmark.md").read_text()
    )
    output = benchmark(tmp_path, "--threads=1", fails=True)
    assert "of another configuration" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "flag, message",
    [
        (
            "--pairs=cifar",
            "--pairs must be among: glyphs; wrn. Received: cifar",
        ),
        (
            "--sections=gpu",
            "--sections must be among: .*imports. Received: gpu",
        ),
        ("--routes=magic", "--routes must be among: student; .* magic"),
        ("--rounds=0", "--rounds=0: 0 is not a positive integer"),
    ],
)
def test_wrong_flags(tmp_path, flag, message):
    output = benchmark(tmp_path / "run", flag, fails=True)
    assert re.search(message, output.replace("\n", " ")), output
    assert not (tmp_path / "run").exists()
