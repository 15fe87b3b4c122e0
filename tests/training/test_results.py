import pathlib
import re

import numpy as np
import pytest
from absl import app

import keras_mhgd
from benchmarks.speed.program import Benchmark
from training import compare
from training.reports import pictures, tables
from training.runs.comparison import Comparison, Way
from training.runs.flags import command_line
from training.saved import results


def rows(*accuracies):
    """Rows of epochs; `None` where the network wasn't tested."""
    return [
        {"epoch": i, "loss": 2.0 / i}
        | ({} if accuracy is None else {"val_accuracy": accuracy})
        for i, accuracy in enumerate(accuracies, start=1)
    ]


def test_measure():
    glyphs = keras_mhgd.data.load("glyphs", subset=100)
    right = np.eye(100)[glyphs.y_test]
    right[:500] = np.roll(right[:500], 1, axis=1)

    def predictor(outputs):
        rest = iter(outputs)
        return lambda images: np.stack([next(rest) for _ in images])

    assert results.measure(predictor(right), glyphs) == 0.9
    with pytest.raises(ValueError, match=r"each of the 100 classes .*\(10,\)"):
        results.measure(predictor(right[:, :10]), glyphs)


@pytest.mark.parametrize("ways", [2, 9])
def test_comparison_is_a_picture(tmp_path, ways):
    """With curves of a few ways; of many with their names and means alone."""
    names = ["alone", *(f"way {i}" for i in range(1, ways))]
    curves = {name: [rows(None, 0.2, 0.6)] * 2 for name in names}
    made = tables.rows(
        0.8,
        {
            name: [{"accuracy": 0.6, "best_accuracy": 0.6, "seconds": 1}] * 2
            for name in names
        },
    )
    figure = pictures.comparison(made, curves, 0.8, "title")
    assert len(figure.axes) == (2 if ways == 2 else 1)
    path = tmp_path / "result.png"
    pictures.save(path, figure)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_one_folders(tmp_path):
    """What was trained by other flags isn't taken for a way's own."""
    alone = Way("student", "train")
    way = Way("MHGD", "distill", {"method": "mhgd"})
    Comparison(tmp_path, [alone, way], {})
    again = Way("mhgd", "distill", {"method": "mhgd"})
    Comparison(tmp_path, [alone, again], {})
    other = Way("mhgd", "distill", {"method": "mhgd", "set": {"num_heads": 1}})
    with pytest.raises(ValueError, match=r"other flags \(mhgd: .*num_heads"):
        Comparison(tmp_path, [alone, other], {})
    teacher = Way("mhgd", "train", {"model": "vgg_small"})
    with pytest.raises(ValueError, match=r"other flags \(mhgd: .*vgg_small"):
        Comparison(tmp_path, [alone], {}, teacher)


def test_a_comparison_whose_config_is_damaged_is_refused(tmp_path):
    ways = [Way("student", "train")]
    for damaged in "{}", '{"shared": {}}', '{"shared": {}, "ways": []}':
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(ValueError, match="config.json must hold the comp"):
            Comparison(tmp_path, ways, {})
        assert (tmp_path / "config.json").read_text() == damaged


def test_methods_of_ways():
    def methods(**flags):
        way = Way("x", "distill", flags)
        return [type(each).__name__ for each in way.methods]

    assert methods(student="x", method="recommended") == [
        "CrossMHGD",
        "SoftLogits",
        "DIST",
    ]
    assert methods(method="rkd+mhgd") == ["RKD", "MHGD"]
    assert methods(model="x") == []


def test_flags_are_written_as_programs_get_them():
    flags = {
        "method": "mhgd",
        "set": {"clipping": None, "variant": {"reduction": "mean"}, "a": "b c"},
        "cache_teacher": True,
        "fused": False,
        "sensing_points": ["a", "b:c"],
        "epochs": 3,
        "run": pathlib.Path("here"),
    }
    assert command_line(flags) == [
        "--method=mhgd",
        "--set=clipping=null",
        '--set=variant={"reduction": "mean"}',
        "--set=a=b c",
        "--cache_teacher",
        "--nofused",
        "--sensing_points=a,b:c",
        "--epochs=3",
        "--run=here",
    ]


def test_one_way_makes_what_others_use(tmp_path, monkeypatch):
    """The first to use MHGD; others don't wait, nor what has no MHAN."""
    ways = [
        Way(method, "distill", {"method": method})
        for method in ("soft_logits", "mhgd", "soft_logits+dist")
    ]
    ways.append(Way("mhgd, one head", "distill", {"method": "mhgd"}))
    waiting = {}

    def train(self, way, trial, waits):
        waiting[way.name, trial] = len(waits)
        return 0

    monkeypatch.setattr(Comparison, "_train", train)
    Comparison(tmp_path, ways, {}).run(trials=2, jobs=1)
    assert [key for key, count in waiting.items() if count] == [
        ("mhgd, one head", 0),
        ("mhgd", 1),
        ("mhgd, one head", 1),
    ]


def test_a_way_may_have_a_teacher_of_its_own(tmp_path):
    """And other flags than all."""
    started = []

    class Process:
        exitcode = 0

        def join(self):
            pass

    def start(program, flags, output, errors):
        started.append(
            [each for each in flags if re.match("--(teacher|epochs)", each)]
        )
        return Process()

    ways = [
        Way("student", "train"),
        Way("theirs", "distill", {"method": "rkd"}),
        Way("own", "distill", {"teacher": "own.keras", "epochs": 3}),
    ]
    teacher = Way("vgg16", "train", {"model": "vgg16"})
    comparison = Comparison(tmp_path, ways, {"epochs": 2}, teacher)
    comparison._processes.start = start
    comparison.run(trials=1, jobs=1)
    assert started == [
        ["--epochs=2"],
        ["--epochs=2"],
        [f"--teacher={tmp_path}/vgg16_0", "--epochs=2"],
        ["--teacher=own.keras", "--epochs=3"],
    ]


def test_predictions_are_read_again(tmp_path):
    labels, predicted = np.array([0, 1, 2]), np.array([0, 2, 2])
    text = "Received: a run without .*npz. Delete the run's result.json"
    with pytest.raises(FileNotFoundError, match=text):
        results.read_predictions(tmp_path)
    results.write_predictions(tmp_path, labels, predicted)
    np.testing.assert_array_equal(results.read_predictions(tmp_path), predicted)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: Comparison(folder, [Way("student", "train")], {}),
        lambda folder: Benchmark(folder, {"rounds": 1}),
    ],
    ids=["comparison", "benchmark"],
)
def test_a_damaged_configuration_is_told(tmp_path, make):
    make(tmp_path)
    make(tmp_path)  # goes on
    path = tmp_path / "config.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(ValueError, match="config.json must hold a JSON object"):
        make(tmp_path)


def test_ways_are_read_as_flags(tmp_path):
    path = tmp_path / "ways.toml"
    path.write_text(
        '[[way]]\nname = "a"\nmethod = "mhgd+dist"\nprofile = [10, 20]\n'
        "[way.set]\nmhgd.num_heads = 4\n'dist.weight' = 2\n"
        "mhgd.variant.fix_signs = true\n"
        '[[way]]\nname = "b"\nmethod = "mhgd"\n'
        "set = {variant = {fix_signs = true}}\n"
    )
    assert compare._read_ways(path) == [
        {
            "name": "a",
            "method": "mhgd+dist",
            "profile": [10, 20],
            "set": {
                "mhgd.num_heads": 4,
                "mhgd.variant": {"fix_signs": True},
                "dist.weight": 2,
            },
        },
        {
            "name": "b",
            "method": "mhgd",
            "set": {"variant": {"fix_signs": True}},
        },
    ]


@pytest.mark.parametrize(
    "flag", ['set = ["num_heads=4"]', 'sensing_points = [["a", "b"]]']
)
def test_flags_of_ways_that_are_no_flags(flag, tmp_path):
    path = tmp_path / "ways.toml"
    path.write_text(f'[[way]]\nname = "a"\n{flag}\n')
    with pytest.raises(app.UsageError, match=f"{flag[:3]}.* in the way 'a'"):
        compare._read_ways(path)
