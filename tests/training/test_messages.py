"""What programs say first and last."""

import json
import pathlib

import keras
import numpy as np
import pytest

import keras_mhgd
from keras_mhgd.storage.files import read_json
from training.messages import closing, opening
from training.reports import tables
from training.runs.run import Run
from training.saved.results import measure_teacher

CONFIG = {
    "batch_size": 16,
    "validation_split": None,
    "teacher": "runs/teacher",
    "method": "mhgd+soft_logits",
    "set": ["mhgd.num_heads=2"],
    "unlabeled": None,
}


@pytest.fixture
def taught(distiller):
    return distiller(
        [keras_mhgd.methods.MHGD(num_heads=2), "soft_logits"],
    )


def test_a_distillation_begins_with_its_facts(taught, bars):
    facts = {"name": "big", "parameters": 2920, "accuracy": 0.75}
    text = opening.of_distillation(taught, facts, bars, CONFIG, "runs/x")
    count = taught.student.count_params()
    share = f"{100 * count / 2920:.0f} %"
    assert text.splitlines() == [
        "Teacher: big from runs/teacher, 75.00 % of the 32 test images",
        f"Student: student, {count} parameters, {share} of the teacher's 2,920",
        "Method: mhgd + soft_logits, mhgd.num_heads=2",
        "Sensing points, student <- teacher: stage1 <- stage1, "
        "stage2 <- stage2",
        "Data: 32 training images of bars, tested on 32 test images",
        "Written to: runs/x",
    ]
    held_out = CONFIG | {"validation_split": 0.5, "method": "recommended"}
    text = opening.of_distillation(taught, facts, bars, held_out, "runs/x")
    assert "75.00 % of the 32 held-out training images" in text
    assert "Method: recommended: mhgd + soft_logits" in text
    assert "It gains more with three times the --epochs" in text
    with_all = held_out | {"unlabeled": "rest"}
    text = opening.of_distillation(taught, facts, bars, with_all, "runs/x")
    assert "gains more" not in text


@pytest.mark.parametrize(
    ("accuracy", "warned"), [(0.1, True), (11 / 32, True), (0.75, False)]
)
def test_a_teacher_that_guesses_is_warned_of(taught, bars, accuracy, warned):
    """Of three classes, the largest has 11 of 32 images."""
    facts = {"name": "big", "parameters": 99, "accuracy": accuracy}
    text = opening.of_distillation(taught, facts, bars, CONFIG, "x")
    assert ("Warning: the teacher's" in text) == warned
    assert ("classes in another order?" in text) == warned


def test_samples_that_teach_nothing_are_warned_of(distiller, bars):
    facts = {"name": "big", "parameters": 99, "accuracy": 0.75}
    some = bars.take(12, "unlabeled")
    warning = "Warning: the 20 images without labels teach nothing here: "
    for method, dataset, warned in (
        (["dkd", "nkd"], some, True),
        (["dkd", "soft_logits"], some, False),
        ("dkd", bars, False),
    ):
        made = distiller(method)
        text = opening.of_distillation(made, facts, dataset, CONFIG, "x")
        assert (warning in text) == warned
        assert ("dkd and nkd must know the label. Add" in text) == warned
    for dataset, warned in ((some, True), (bars, False)):
        text = opening.of_training(made.student, dataset, CONFIG, "x")
        assert (warning + "there is no teacher. Use distill" in text) == warned


def test_a_teacher_is_measured_as_it_teaches(taught, bars, small_net):
    x = bars.normalise(bars.x_test)
    right = taught.teacher.predict(x, verbose=0).argmax(-1) == bars.y_test
    facts = measure_teacher(taught, bars, batch_size=10)
    assert facts == {
        "name": "teacher",
        "parameters": taught.teacher.count_params(),
        "accuracy": pytest.approx(right.mean()),
    }
    seeing = keras_mhgd.Distiller(
        small_net("seeing"),
        taught.teacher,
        "soft_logits",
        teacher_preprocessor=keras.layers.Rescaling(-1.0),
    )
    right = taught.teacher.predict(-x, verbose=0).argmax(-1) == bars.y_test
    facts = measure_teacher(seeing, bars, batch_size=10)
    assert facts["accuracy"] == pytest.approx(right.mean())


def test_a_teacher_is_measured_once_in_a_run(taught, bars, tmp_path):
    first = Run(tmp_path, CONFIG).measured_teacher(taught, bars)
    taught.teacher.set_weights(
        [np.zeros_like(each) for each in taught.teacher.get_weights()]
    )
    again = Run(tmp_path, CONFIG)
    assert again.measured_teacher(taught, bars) == again.teacher == first
    # What a command left that failed before it wrote its configuration.
    other = Run(tmp_path, CONFIG | {"batch_size": 8})
    assert other.teacher is None
    found = other.measured_teacher(taught, bars)
    assert found["accuracy"] == 11 / 32
    assert read_json(tmp_path / "teacher.json")["teacher"] == found


def result(accuracy, teacher=0.84):
    config = {
        "dataset": "my bars.npz",
        "data_dir": None,
        "image_size": ["20", "24"],
        "validation_split": 0.25,
    }
    made = {
        "accuracy": accuracy,
        "best_accuracy": 0.8,
        "epochs": 4,
        "seconds": 150.0,
        "parameters": 1000,
        "configuration": config,
    }
    if teacher:
        made["teacher"] = {"accuracy": teacher, "parameters": 4000}
        config["teacher"] = "runs/t"
    return made


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Makes `finished(result)`: a run folder of this result."""
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path("mhgd")
    path.mkdir()
    (path / "last.keras").write_bytes(bytes(12_000))

    def finish(made):
        (path / "result.json").write_text(json.dumps(made))
        return path

    return finish


def end(finished, made):
    return closing.of_run(finished(made), made)


def test_a_run_ends_with_gain_costs_and_what_is_next(finished):
    assert end(finished, result(0.8)).splitlines() == [
        "mhgd is finished: accuracy 0.8000 (best epoch 0.8000) after 4 epochs.",
        "Gained: the student has 80.00 %, the teacher 84.00 %. 4.00 points "
        "are left.",
        "Costs: 1,000 parameters (25 % of the teacher's), 12 kB as last.keras, "
        "2.5 minutes of training.",
        "Next:",
        "  python -m training.evaluate '--dataset=my bars.npz' "
        "--image_size=20,24 --validation_split=0.25 --model=mhgd",
        "  python -m training.export '--dataset=my bars.npz' "
        "--image_size=20,24 --model=mhgd --teacher=runs/t "
        "--out=saved_models/mhgd",
    ]
    alone = end(finished, result(0.8, teacher=None))
    assert "teacher" not in alone and "Gained" not in alone


@pytest.mark.parametrize(("accuracy", "harms"), [(0.839, False), (0.84, True)])
def test_a_teacher_that_is_not_better_is_told(finished, accuracy, harms):
    text = "A teacher that isn't better than its student can harm"
    assert (text in end(finished, result(accuracy))) == harms


@pytest.mark.parametrize(
    ("accuracies", "teacher", "told"),
    [
        (
            [0.7, 0.8, 0.75],
            0.9,
            "Gained: b has 80.00 %, the student alone has 70.00 %, the teacher "
            "90.00 %. 50 % of the gap is closed.\n",
        ),
        (
            [0.7, 0.6, 0.7],
            0.9,
            "Gained: nothing, the student alone has 70.00 %, the teacher "
            "90.00 %.\n",
        ),
        (
            [0.7, 0.71],
            0.65,
            "Gained: b has 71.00 %, the student alone has 70.00 %, the teacher "
            "65.00 %. A teacher that isn't better than its student can harm",
        ),
    ],
)
def test_a_comparison_ends_with_its_best(finished, accuracies, teacher, told):
    path = finished(result(0.8))
    trials = {
        name: [result(accuracy), result(accuracy)]
        for name, accuracy in zip("abc", accuracies, strict=False)
    }
    rows = tables.rows(teacher, trials)
    text = closing.of_comparison(rows, teacher, dict.fromkeys("abc", [path]))
    assert text.startswith(told)
    assert "\nCosts: 1,000 parameters (25 % of the teacher's), 12 kB" in text
