"""A small data set, a teacher and a student, made by the programs."""

import subprocess

import numpy as np
import pytest

from tests.training.runs import PREPARATION, STUDENT, TEACHER, command, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("programs")


@pytest.fixture(scope="module")
def data(folder):
    """Flags of a small data set: three classes of bars, 16 x 16."""
    rng = np.random.default_rng(0)

    def draw(count):
        y = np.arange(count) % 3
        x = rng.integers(0, 90, size=(count, 16, 16, 1))
        for image, label in zip(x, y, strict=True):
            image[5 * label + 2] += 150
        return x.astype("uint8"), y

    x_train, y_train = draw(60)
    x_test, y_test = draw(30)
    path = folder / "bars.npz"
    np.savez(
        path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test
    )
    return [f"--dataset={path}", "--batch_size=16"]


@pytest.fixture(scope="module")
def teacher(folder, data):
    run("train", *data, *TEACHER, f"--run={folder}/teacher")
    return folder / "teacher"


@pytest.fixture(scope="module")
def distill(data, teacher):
    """Arguments of `distill` but its run folder."""
    return [*data, *STUDENT, f"--teacher={teacher}", PREPARATION]


@pytest.fixture(scope="module")
def said(folder, distill):
    """What `distill` says as it makes `student`, started as by a user."""
    return subprocess.run(
        command("distill", *distill, f"--run={folder}/student"),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def student(folder, said):
    """An uninterrupted run."""
    return folder / "student"
