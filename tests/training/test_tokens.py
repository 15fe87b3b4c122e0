"""The programs with sequences of tokens."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.training.launcher import started
from tests.training.runs import PREPARATION, assert_same_run, read_rows, run

pytestmark = pytest.mark.slow

ADAM = ["--optimizer=adam", "--learning_rate=0.003"]
DATA = ["--dataset=languages", "--subset=160", "--batch_size=32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def data(folder):
    """Flags of a small data set: which of three tokens is in odd places."""
    rng = np.random.default_rng(0)

    def draw(count):
        x = rng.integers(4, 6, (count, 8))
        x[:, ::2] = 1 + np.arange(count)[:, np.newaxis] % 3
        lengths = rng.integers(2, 9, (count, 1))
        return x * (np.arange(8) < lengths), x[:, 0] - 1

    x_train, y_train = draw(90)
    x_test, y_test = draw(30)
    path = folder / "words.npz"
    np.savez(
        path,
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        tokens=np.array(["", *"abcde"]),
    )
    return [f"--dataset={path}", "--batch_size=16"]


@pytest.fixture(scope="module")
def teacher(folder, data):
    model = ["--model=char_transformer_small", "--epochs=12"]
    run("train", *data, *model, *ADAM, f"--run={folder}/teacher")
    return folder / "teacher"


@pytest.fixture(scope="module")
def distill(data, teacher):
    """Arguments of `distill` but its run folder."""
    return [
        *data,
        *ADAM,
        f"--teacher={teacher}",
        "--student=char_cnn",
        "--epochs=2",
        "--views=2",
        "--set=num_heads=2",
        PREPARATION,
    ]


@pytest.fixture(scope="module")
def student(folder, distill):
    run("distill", *distill, f"--run={folder}/student")
    return folder / "student"


def test_the_teacher_learns(teacher):
    accuracy = json.loads((teacher / "result.json").read_text())["accuracy"]
    assert accuracy > 0.6


def test_distills_and_reports(student):
    names = {path.name for path in student.iterdir()}
    assert {"attention.npz", "last.keras", "report.html"} <= names
    rows = read_rows(student)
    assert len(rows) == 2
    assert all(float(row["mhgd"]) > 0 for row in rows)


def test_resumes(folder, distill, student):
    """A run that is killed within its last epoch."""
    path = folder / "resumed"
    arguments = [*distill, "--save_freq=1", f"--run={path}"]
    with started("training.distill", *arguments) as (process, output):
        while not list(path.glob("checkpoints/epoch_00001_step_*")):
            assert process.is_alive(), output.read_text()
            time.sleep(0.001)
        process.kill()
        process.join()
    assert not (path / "result.json").exists()
    assert "Resuming" in run("distill", *arguments)
    assert_same_run(path, student)


def test_a_cache_changes_nothing(folder, distill, student):
    path = folder / "cached"
    run("distill", *distill, "--cache_teacher", f"--run={path}")
    rows = [read_rows(each) for each in (path, student)]
    for a, b in zip(*rows, strict=True):
        assert float(a["mhgd"]) == pytest.approx(float(b["mhgd"]), rel=1e-3)


def test_the_rest_teaches_without_labels(folder, teacher, data):
    output = run(
        "distill",
        *data,
        f"--teacher={teacher}",
        "--student=char_cnn",
        "--method=soft_logits",
        "--epochs=1",
        "--subset=30",
        "--unlabeled=rest",
        f"--run={folder}/rest",
    )
    assert "60 of 90 training sequences have no labels" in output


def test_exports(folder, data, student):
    out = folder / "exported"
    formats = "--formats=saved_model,tflite,tflite_dynamic_int8"
    run("export", *data, f"--model={student}", formats, f"--out={out}")
    facts = json.loads((out / "export.json").read_text())
    assert facts["tokens"] == ["", *"abcde"]
    assert facts["input_shape"] == [8]
    accuracy = json.loads((student / "result.json").read_text())["accuracy"]
    for file in facts["files"][:2]:
        assert file["accuracy"] == pytest.approx(accuracy)
        printed = run("evaluate", *data, f"--model={out / file['path']}")
        assert f"accuracy {accuracy:.4f} on 30 test sequences" in printed
    card = (out / "README.md").read_text()
    assert card.startswith("# char_cnn on words.npz\n\nA sequence classifier")
    assert "Input: `(batch, 8)`" in card
    assert '["", "a", "b", "c", "d", "e"]' in card
    assert "pixels" not in card
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == 2
    code = "\n".join(f"exec({block!r}, {{}})" for block in blocks)
    subprocess.run([sys.executable, "-c", code], cwd=out, check=True)


def test_exports_no_integers(folder, data, student):
    output = run(
        "export",
        *data,
        f"--model={student}",
        "--formats=tflite_int8",
        f"--out={folder}/int8",
        fails=True,
    )
    assert "`calibration` must hold training images" in output
    assert "takes int32" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=resnet_small"], "resnet_small takes images, so"),
        (
            ["--model=char_cnn", "--augmentation=standard"],
            "languages: `augmentation` must be none .*'standard'",
        ),
        (
            ["--model=char_cnn", "--image_size=32"],
            "`image_size` must be left out for languages",
        ),
        (
            ["--model=char_cnn", "--unlabeled=images"],
            "--unlabeled must be rest for languages",
        ),
        (["--model=char_cnn", "--dataset=glyphs"], "char_cnn takes sequences"),
    ],
)
def test_says_what_is_wrong(folder, flags, message):
    wrong = [*DATA, "--epochs=1", f"--run={folder}/wrong", *flags]
    output = run("train", *wrong, fails=True)
    assert re.search(message, output), output
    assert not (folder / "wrong" / "config.json").exists()
