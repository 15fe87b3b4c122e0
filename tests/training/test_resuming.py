"""Programs that are killed, told to end, or find damage, and go on."""

import os
import re
import signal
import time

import numpy as np
import pytest

from keras_mhgd.storage.files import locked
from tests.training.launcher import started
from tests.training.runs import TEACHER, assert_same_run, read_rows, run

pytestmark = pytest.mark.slow

STEPS = 4  # an epoch of the data set
PREPARATION_STEPS, TRANSFER_STEPS = 2 * STEPS, 4 * STEPS


def steps(path):
    """Steps of the newest checkpoint, counted on from the preparation's."""
    found = [0]
    for file in path.glob("checkpoints/**/epoch_*.npz"):
        epochs, *rest = map(int, re.findall(r"\d+", file.name))
        before = 0 if file.parent.name.startswith("mhan") else PREPARATION_STEPS
        found.append(before + STEPS * epochs + sum(rest))
    return max(found)


def wait(process, output):
    assert process.is_alive(), output.read_text()
    time.sleep(0.001)


def test_twenty_kills_change_nothing(folder, distill, student):
    """SIGKILL at random steps of preparation and transfer, one after another.

    At these moments, or up to 30 ms later: while a step is computed or a
    checkpoint is written.
    """
    path = folder / "killed"
    arguments = [*distill, "--save_freq=1", f"--run={path}"]
    rng = np.random.default_rng(0)
    total = PREPARATION_STEPS + TRANSFER_STEPS
    moments = np.sort(rng.choice(total - 1, 20, replace=False))
    resumed = ""
    for moment in moments:
        with started("training.distill", *arguments) as (process, output):
            while steps(path) < moment:
                wait(process, output)
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
            process.join()
            resumed += "".join(re.findall("Resuming.*\n", output.read_text()))
        assert process.exitcode == -signal.SIGKILL
        assert not (path / "result.json").exists()
    output = run("distill", *arguments)
    assert "Preparing" not in output
    assert_same_run(path, student)
    # Which of them, hangs on the machine.
    assert re.search(r"after epoch \d and \d steps", resumed)
    assert f"Resuming {path}" in resumed


def test_told_to_end_it_saves_and_goes_on(folder, distill, student):
    """SIGINT while MHAN trains, SIGTERM in the second epoch of the student."""
    path = folder / "told"
    arguments = [*distill, f"--run={path}"]
    for number, epoch in (
        (signal.SIGINT, "Epoch 1/2"),
        (signal.SIGTERM, "Epoch 2/4"),
    ):
        with started("training.distill", *arguments) as (process, output):
            while epoch not in output.read_text():
                wait(process, output)
            os.kill(process.pid, number)
            process.join(30)
            text = output.read_text()
        assert process.exitcode == 75, text
        assert f"{number.name}: ends once the state is saved." in text
    output = run("distill", *arguments)
    assert "Resuming" in output and "Preparing" not in output
    assert_same_run(path, student)


def test_a_plain_training_resumes_too(folder, data, teacher):
    """A checkpoint of epoch 1 alone, as a kill leaves it."""
    path = folder / "again"
    arguments = [*data, *TEACHER, f"--run={path}"]
    path.mkdir()
    (path / "checkpoints").mkdir()
    for name in ("config.json", "checkpoints/epoch_00001.npz"):
        (path / name).write_bytes((teacher / name).read_bytes())
    rows = (teacher / "metrics.csv").read_text().splitlines(keepends=True)
    (path / "metrics.csv").write_text("".join(rows[:2]))
    assert "Resuming" in run("train", *arguments)
    assert_same_run(path, teacher)


def test_a_second_process_is_refused(folder, data):
    """And not once the first one is dead."""
    path = folder / "busy"
    arguments = [*data, "--model=resnet_small", "--epochs=1", f"--run={path}"]
    path.mkdir()
    with locked(path):
        output = run("train", *arguments, fails=True)
    assert "Another process must not be at work in the folder" in output
    run("train", *arguments)


@pytest.mark.parametrize(
    ("nonfinite", "message"),
    [
        ("raise", "must be finite. Received NaN or infinity in: "),
        ("skip", "Received NaN or infinity in all steps of epoch 1: "),
    ],
)
def test_divergence_is_told(folder, distill, nonfinite, message):
    """And the checkpoint is of the epoch before: here of none."""
    path = folder / f"diverged_{nonfinite}"
    output = run(
        "distill",
        *[each for each in distill if not each.startswith("--set")],
        "--method=fsp",
        "--set=weight=1e30",
        f"--nonfinite={nonfinite}",
        f"--run={path}",
        fails=True,
    )
    assert message in output
    names = [each.name for each in (path / "checkpoints").iterdir()]
    assert names == ["epoch_00000.npz"]


def test_a_run_may_go_on_with_skipping(folder, distill):
    """It is no other configuration; the table counts what was skipped."""
    path = folder / "skipping"
    arguments = [each for each in distill if not each.startswith("--set")]
    arguments += ["--method=soft_logits", f"--run={path}"]
    with started("training.distill", *map(str, arguments)) as (process, output):
        while "Epoch 2/4" not in output.read_text():
            wait(process, output)
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
    assert "Resuming" in run("distill", *arguments, "--nonfinite=skip")
    skipped = [row["skipped_steps"] for row in read_rows(path)]
    assert skipped[0] == "" and skipped[-1] == "0.0"
    assert (path / "report.html").exists()


def test_a_comparison_told_to_end_tells_its_trainings(folder, data, teacher):
    path = folder / "compared"
    arguments = [*data, f"--teacher={teacher}", "--student=resnet_small"]
    arguments += ["--methods=student", "--trials=2", "--jobs=2"]
    arguments += ["--epochs=1000", f"--run={path}"]
    with started("training.compare", *arguments) as (process, output):
        for trial in (0, 1):
            while f"student_{trial} | Epoch 3/1000" not in output.read_text():
                wait(process, output)
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        text = output.read_text()
    assert process.exitcode == 75, text
    for trial in (0, 1):
        assert f"student_{trial} | The state is saved." in text
        with locked(path / f"student_{trial}"):  # nobody trains there
            pass
