"""Searches that are killed, told to end, or shared, and what they leave."""

import csv
import itertools
import json
import os
import signal
import socket
import time

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
    EventAccumulator,
)

from tests.training.launcher import started
from tests.training.runs import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tune(data, teacher):
    """Arguments of a small search but its run folder."""
    return [
        *data,
        f"--teacher={teacher}",
        "--student=resnet_small",
        "--methods=soft_logits,dkd",
        "--set=dkd.temperature=2",
        "--sensing_points=stage1,stage2:stage3",
        "--views=1",
        "--epochs=2",
        "--trials=2",
    ]


def scores(path):
    with open(path / "trials.csv") as file:
        return {
            row["trial"]: row["val_accuracy"] for row in csv.DictReader(file)
        }


@pytest.fixture(scope="module")
def whole(folder, tune):
    """An uninterrupted search, and what it printed."""
    path = folder / "whole"
    return path, run("tune", *tune, f"--run={path}")


def test_what_a_search_leaves(whole, tune, teacher):
    path, output = whole
    result = json.loads((path / "result.json").read_text())
    assert result["trials"] == 2
    rows = json.loads((path / "trials.json").read_text())
    assert [row["status"] for row in rows] == ["COMPLETED"] * 2
    assert rows[0]["val_accuracy"] == result["validation_accuracy"]
    assert rows[0]["val_accuracy"] == max(row["val_accuracy"] for row in rows)
    assert "| trial | validation accuracy, % | method | settings |" in output
    assert (path / "trials.png").read_bytes().startswith(b"\x89PNG")
    assert "image/svg+xml" in (path / "report.html").read_text()
    # The best, on all images, tested once.
    best = json.loads((path / "best" / "result.json").read_text())
    assert best["accuracy"] == best["best_accuracy"] == result["accuracy"]
    configuration = best["configuration"]
    assert configuration["subset"] is None
    assert configuration["method"] == rows[0]["method"]
    assert configuration["learning_rate"] == rows[0]["learning_rate"]
    assert configuration["sensing_points"] == ["stage1", "stage2:stage3"]
    found = dict(each.split("=") for each in configuration["set"])
    for name, value in rows[0].items():
        if "/" in name:
            assert json.loads(found[name.replace("/", ".")]) == value
    keras.saving.load_model(path / "best" / "last.keras")
    # One TensorBoard run a trial, with its hyperparameters.
    for row in rows:
        events = EventAccumulator(
            str(path / "logs" / row["trial"] / "execution0")
        ).Reload()
        tags = events.summary_metadata
        assert "_hparams_/session_start_info" in tags
    again = run("tune", *tune, f"--run={path}")
    assert "is finished: 2 trials" in again and "Search" not in again
    other = [*tune, "--validation_split=0.3", f"--run={path}"]
    assert "another configuration" in run("tune", *other, fails=True)


def wait(process, output, condition):
    end = time.monotonic() + 300
    while not condition():
        assert process.is_alive() and time.monotonic() < end, output.read_text()
        time.sleep(0.01)


def test_killed_and_told_to_end_it_goes_on(folder, tune, whole):
    """SIGKILL after the first trial, SIGTERM while the best is trained."""
    path = folder / "killed"
    arguments = [*tune, f"--run={path}"]
    states = path / "shared" / "trials"
    with started("training.tune", *arguments) as (process, output):
        wait(
            process,
            output,
            lambda: len(list(states.glob("*/epoch_00001.npz"))) == 2,
        )
        process.kill()
        process.join()
    first = path / "search" / "trial_0" / "trial.json"
    written = first.stat().st_mtime_ns
    with started("training.tune", *arguments) as (process, output):
        wait(
            process,
            output,
            lambda: (
                path / "best" / "checkpoints" / "epoch_00001.npz"
            ).exists(),
        )
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode == 75, output.read_text()
        assert "Search: Running Trial #1\n" not in output.read_text()
    assert not (path / "result.json").exists()
    assert "Resuming" in run("tune", *arguments)
    assert first.stat().st_mtime_ns == written
    assert scores(path) == scores(whole[0])


def test_a_chief_and_two_workers(folder, tune):
    """On loopback, each a process of its own; all end by themselves.

    One of the workers is killed in its trial and started again.
    """
    path = folder / "shared"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*tune, f"--run={path}"]

    def begin(name):
        return started(
            "training.tune",
            *arguments,
            environment={
                "KERASTUNER_TUNER_ID": name,
                "KERASTUNER_ORACLE_IP": "127.0.0.1",
                "KERASTUNER_ORACLE_PORT": str(port),
            },
        )

    with begin("chief") as (chief, told):
        states = path / "shared" / "trials"
        with begin("worker_0") as (killed, output):
            wait(
                killed,
                output,
                lambda: list(states.glob("*/epoch_00001.npz")),
            )
        with (
            begin("worker_0") as (first, of_first),
            begin("worker_1") as (second, of_second),
        ):
            for process in (first, second, chief):
                process.join(400)
            texts = [each.read_text() for each in (told, of_first, of_second)]
            codes = [each.exitcode for each in (chief, first, second)]
    assert killed.exitcode == -signal.SIGKILL
    assert codes == [0, 0, 0], "\n".join(texts)
    assert "is finished: 2 trials" in texts[0]
    assert len(scores(path)) == 2 and "" not in scores(path).values()
    for text in texts[1:]:
        assert "The search is finished; its chief trains the best." in text


@pytest.mark.parametrize(
    "changed, message",
    [
        ("--methods=mhdg", "Did you mean 'mhgd'"),
        ("--set=dkd.temperatur=2", "Did you mean 'temperature'"),
        ("--set=temperature=2", "--set must be method.name=value"),
        ("--validation_split=1", "must lie between 0 and 1"),
        ("--validation_freq=2", "--validation_freq must be 1"),
        ("--tuner=hyperband", "--trials must be given, but not for"),
        ("--learning_rate_factor=0", "must be 1 or more"),
    ],
)
def test_wrong_flags_are_told(folder, tune, changed, message):
    path = folder / "wrong"
    output = run("tune", *tune, changed, f"--run={path}", fails=True)
    assert message in output
    assert not (path / "config.json").exists()


def test_devices_are_made_before_images_are_read(folder, tune):
    """What comes after that is told, not that TensorFlow is at work."""
    images = folder / "images"
    for part, name in itertools.product(("train", "test"), ("a", "b", "c")):
        (images / part / name).mkdir(parents=True)
        image = np.zeros((16, 16, 1), np.uint8)
        keras.utils.save_img(images / part / name / "0.png", image)
    output = run(
        "tune",
        *tune,
        f"--dataset={images}",
        "--strategy=mirrored",
        "--cpu_devices=2",
        "--set=dkd.temperatur=2",
        f"--run={folder}/devices",
        fails=True,
    )
    assert "Did you mean 'temperature'" in output
