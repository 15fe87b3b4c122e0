"""Trainings that can't write: what they tell, leave, and go on from."""

import contextlib
import functools
import re
import shutil
import subprocess

import pytest

from keras_mhgd.callbacks import checkpoint
from keras_mhgd.storage.arrays import read_arrays
from tests.training import limits
from tests.training.launcher import launch
from tests.training.runs import assert_same_run, run
from training.saved.results import read_metrics
from training.saved.trained import load_network

pytestmark = pytest.mark.slow

MODEL = ["--model=resnet_small", "--epochs=3"]
NO_SPACE = "No space left on device"
TOO_LARGE = "File too large"


@contextlib.contextmanager
def small_disk(path):
    """A file system of its own: gives a way to make it larger than its use."""

    def mount(*arguments):
        command = ["mount", *arguments, path]
        subprocess.run(command, check=True, capture_output=True)

    def hold(size):
        used = shutil.disk_usage(path).used
        mount("-o", f"remount,size={used + size}")

    path.mkdir()
    mount("-t", "tmpfs", "tmpfs")
    try:
        yield hold
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def small_files(size):
    return functools.partial(limits.file_size, size)


def may_mount(folder):
    try:
        with small_disk(folder / "probe"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@pytest.fixture(scope="module")
def whole(folder, data):
    """An uninterrupted run."""
    run("train", *data, *MODEL, f"--run={folder}/whole")
    return folder / "whole"


def fails(program, *arguments, file, cause, **options):
    """Runs a program that can't write a file, and what it leaves is whole."""
    code, output = launch(f"training.{program}", *arguments, **options)
    assert code == 1, output
    last = output[output.rindex("Error: ") :]
    assert re.search(file, last) and cause in last, output
    return output


def assert_whole(folder):
    """What is there can be read, and there is nothing else."""
    for path in folder.rglob("*"):
        if path.suffix == ".keras":
            load_network(path)
        elif path.suffix == ".npz" and "checkpoints" in path.parts:
            checkpoint._read(path)
        elif path.suffix == ".npz":
            read_arrays(path)
        elif path.name == "metrics.csv":
            assert read_metrics(path)
        assert path.name == ".lock" or path.name[0] != "."


@pytest.mark.parametrize("kind", ["disk", "files"])
def test_a_disk_that_grows_too_slowly(tmp_path, folder, data, whole, kind):
    """The same command again and again ends with the weights of one run.

    Where nothing can be mounted, files are limited instead of the disk.
    """
    path = tmp_path / "disk" / "run"
    arguments = [*data, *MODEL, f"--run={path}"]
    with contextlib.ExitStack() as stack:
        if kind == "disk" and may_mount(tmp_path):
            hold = stack.enter_context(small_disk(path.parent))
            for size, file in (
                (2**12, "logs"),
                (500_000, "epoch_00001.npz"),
                (700_000, "best.keras|epoch_00002.npz"),
            ):
                hold(size)
                fails("train", *arguments, file=file, cause=NO_SPACE)
                assert_whole(path)
            hold(10**7)
        else:
            for size, file in (
                (20_000, "best.keras"),
                (500_000, "epoch_00001.npz"),
            ):
                fails(
                    "train",
                    *arguments,
                    file=file,
                    cause=TOO_LARGE,
                    limit=small_files(size),
                )
                assert_whole(path)
        run("train", *arguments)
        assert_same_run(path, whole)
        assert_whole(path)


def test_a_distillation_goes_on_too(folder, distill, student):
    """Where MHAN can't be saved, the student's checkpoint, or its weights."""
    path = folder / "full"
    arguments = [*distill, f"--run={path}"]
    for size, file in (
        (20_000, "mhan"),
        (500_000, "epoch_00000.npz"),
    ):
        fails(
            "distill",
            *arguments,
            file=file,
            cause=TOO_LARGE,
            limit=small_files(size),
        )
        assert_whole(path)
    output = run("distill", *arguments)
    assert "Resuming mhan_trainer after epoch 2" in output
    assert_same_run(path, student)


def test_permission_that_is_lost_and_given_back(folder, data, whole):
    """From a run that has come to the first epoch's end."""
    path = folder / "forbidden"
    checkpoints = path / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(whole / "config.json", path)
    shutil.copy(whole / "checkpoints/epoch_00002.npz", checkpoints)
    rows = (whole / "metrics.csv").read_text().splitlines(keepends=True)
    (path / "metrics.csv").write_text("".join(rows[:3]))
    arguments = [*data, *MODEL, f"--run={path}"]
    options = {"cause": "Permission denied", "limit": limits.permissions}
    checkpoints.chmod(0o555)
    output = fails("train", *arguments, file="epoch_00003.npz", **options)
    assert "after epoch 2" in output
    assert_whole(path)
    path.chmod(0o555)
    fails("train", *arguments, file="folder must be writable", **options)
    path.chmod(0o755)
    checkpoints.chmod(0o755)
    run("train", *arguments)
    assert_same_run(path, whole)


def test_a_cache_on_a_full_disk(tmp_path, folder, distill):
    """Files that are mapped into memory: no signal ends the process."""
    arguments = [*distill, "--views=2", "--cache_teacher"]
    arguments += ["--cache_dir", str(tmp_path / "cache")]
    arguments += [f"--run={folder}/uncached"]
    options, cause = {"limit": small_files(10_000)}, TOO_LARGE
    file = "vectors.*npy"
    with contextlib.ExitStack() as stack:
        if may_mount(tmp_path):
            hold = stack.enter_context(small_disk(tmp_path / "cache"))
            hold(2**13)
            options, cause, file = {}, NO_SPACE, "must have room.*cache"
        fails("distill", *arguments, file=file, cause=cause, **options)
        names = {each.name for each in (tmp_path / "cache").iterdir()}
        assert names == {".lock", "manifest.json"}
