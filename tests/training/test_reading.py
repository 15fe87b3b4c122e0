"""Trainings that read images when they are needed read what they need."""

import collections
import contextlib
import functools
import itertools
import os
import re
import signal

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.correctness.cluster import tf_configs
from keras_mhgd import data
from keras_mhgd.data import dataset as data_set
from keras_mhgd.distribution import fitting
from tests.data.opens import opens
from tests.training import killed
from tests.training.launcher import launch, read_when_needed, started
from tests.training.runs import assert_same_run

pytestmark = pytest.mark.slow

# Batches that are read before they are needed: those of `_streamed`, and what
# a strategy holds.
AHEAD = data_set._PARALLEL + data_set._WAITING + 4


def positions(dataset, batch_size, count, **place):
    """Positions of the images of batches, one list for each."""
    stream = dataset.train_with_places(batch_size, **place).take(count)
    return [each.numpy().tolist() for _, _, each in stream]


def counted(batches):
    return collections.Counter(itertools.chain.from_iterable(batches))


def records_read(output):
    """Counts the records that `killed` says it reads."""
    return collections.Counter(map(int, re.findall(r"Reads (\d+)", output)))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    pytest.importorskip("array_record")
    folder = tmp_path_factory.mktemp("images")
    killed.write_images(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    code, output = launch("tests.training.killed", "files", images, run)
    assert code == 0, output
    return run


@pytest.mark.parametrize("kind", ["files", "TFRecords", "ArrayRecords"])
def test_a_killed_training_reads_only_what_follows(
    images, uninterrupted, tmp_path, kind
):
    """SIGKILL in step 18 of 20 of the second epoch; step 15 is saved."""
    arguments = ["tests.training.killed", kind, images, tmp_path / "run"]
    code, output = launch(*arguments, 38)
    assert code == -signal.SIGKILL, output
    with opens([images]) as found:
        code, output = launch(*arguments)
    assert code == 0, output
    assert "after epoch 1 and 15 steps" in output
    assert_same_run(tmp_path / "run", uninterrupted)
    read = records_read(output)
    if kind == "files":
        read = collections.Counter({int(p.stem): n for p, n in found.items()})
    dataset = killed.dataset_of("files", images)
    # A stream for the rest of the second epoch, and one for the third.
    parts = [(5, {"initial_epoch": 1, "initial_step": 15})]
    parts += [(20, {"initial_epoch": 2})]
    batches = [
        positions(dataset, killed.BATCH, steps + AHEAD, **place)
        for steps, place in parts
    ]
    needed = counted(batches[0][:5] + batches[1][:20])
    assert needed <= read <= counted(batches[0] + batches[1])


def share_of(worker):
    """Gives one of two workers' rows of each batch."""
    return lambda batches: batches.flat_map(
        lambda *batch: fitting._rows(batch, 2, worker, 1, 0)
    )


@pytest.mark.parametrize("kind", ["TFRecords", "ArrayRecords"])
@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_reads_its_own_records_only(images, capfd, kind, worker):
    dataset = killed.dataset_of(kind, images)
    place = {"initial_step": 5, "share": share_of(worker)}
    batches = positions(dataset, killed.BATCH, 10, **place)
    read = records_read(capfd.readouterr().out)
    dataset = killed.dataset_of("files", images)
    allowed = positions(dataset, killed.BATCH, 10 + AHEAD, **place)
    assert counted(batches) == counted(allowed[:10])
    assert counted(batches) <= read <= counted(allowed)


def begin(folder):
    """Works in a folder of the process's own."""
    read_when_needed()
    os.chdir(folder)


def write_folder(folder):
    """Writes an image folder; gives its paths in the order of the set's."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 27), ("test", 5)):
        for number in range(count):
            path = folder / part / "ab"[number % 2] / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (16, 16, 3), np.uint8)
            path.write_bytes(tf.io.encode_jpeg(image).numpy())
    return sorted(folder.glob("train/*/*")), sorted(folder.glob("test/*/*"))


def test_each_worker_opens_its_own_files_only(tmp_path):
    """Each has a folder of its own, as on a machine of its own."""
    with contextlib.ExitStack() as stack:
        sets, found, processes = [], [], []
        for worker, config in enumerate(tf_configs(2)):
            folder = tmp_path / str(worker)
            sets.append(write_folder(folder / "set"))
            found.append(stack.enter_context(opens([*folder.glob("set/*/*")])))
            processes.append(
                stack.enter_context(
                    started(
                        "training.train",
                        "--dataset=set",
                        "--model=resnet_small",
                        "--epochs=2",
                        "--batch_size=6",
                        f"--run={tmp_path / 'run'}",
                        "--strategy=multi_worker",
                        environment={"TF_CONFIG": config},
                        limit=functools.partial(begin, folder),
                    )
                )
            )
        for process, output in processes:
            process.join()
            assert process.exitcode == 0, output.read_text()
            assert "when they are needed" in output.read_text()
    dataset = data.load(tmp_path / "0" / "set")
    steps = 2 * dataset.steps_per_epoch(6)
    for worker, opened in enumerate(found):
        batches = positions(dataset, 6, steps + AHEAD, share=share_of(worker))
        read = collections.Counter(
            {
                number: opened[path]
                for number, path in enumerate(sets[worker][0])
            }
        )
        # Loading looks at the first image.
        needed, allowed = counted(batches[:steps]), counted(batches)
        for each in (read, needed, allowed):
            del each[0]
        assert needed <= read <= allowed, worker
    # The other one is the chief, which writes its classes of all test images.
    _, *test = sets[1][1]
    assert set(test) & set(found[1]) == set(test[2:])
