"""Programs, and what they leave in a run folder."""

import csv
import sys

import keras
import numpy as np

from tests.training.launcher import launch

TEACHER = ["--model=vgg_small", "--epochs=2"]
STUDENT = ["--student=resnet_small", "--epochs=4", "--set=num_heads=2"]
PREPARATION = "--set=preparation_epochs=2"


def command(program, *arguments):
    return [sys.executable, "-m", f"training.{program}", *map(str, arguments)]


def run(program, *arguments, fails=False):
    """Runs a program; returns what it printed."""
    code, output = launch(f"training.{program}", *map(str, arguments))
    assert (code != 0) == fails, output
    return output


def weights(path):
    return keras.saving.load_model(path / "last.keras").get_weights()


def assert_same_run(found, expected):
    for a, b in zip(weights(found), weights(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = [read_rows(path) for path in (found, expected)]
    assert rows[0] == rows[1]
    if (expected / "attention.npz").exists():
        graphs = [np.load(path / "attention.npz") for path in (found, expected)]
        for name in graphs[1]:
            np.testing.assert_array_equal(*(each[name] for each in graphs))


def read_rows(path):
    with open(path / "metrics.csv") as file:
        return [
            {name: value for name, value in row.items() if name != "seconds"}
            for row in csv.DictReader(file)
        ]
