"""Programs that run on several workers, and what happens when one dies."""

import contextlib
import os
import signal
import time

import pytest

from benchmarks.correctness.cluster import tf_configs
from tests.training.launcher import started
from tests.training.runs import assert_same_run, run


@contextlib.contextmanager
def workers(program, *arguments, count=2):
    """Starts a program on so many workers; gives processes and outputs."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                started(
                    f"training.{program}",
                    *map(str, arguments),
                    "--strategy=multi_worker",
                    environment={"TF_CONFIG": config},
                )
            )
            for config in tf_configs(count)
        ]


def ended(found, seconds=400):
    """Waits for all; gives exit codes and what was printed."""
    for process, _ in found:
        process.join(seconds)
    return (
        [process.exitcode for process, _ in found],
        [output.read_text() for _, output in found],
    )


def wait_for(text, process, output):
    while text not in output.read_text():
        assert process.is_alive(), output.read_text()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def arguments(distill, folder):
    # Steps are short, as round-off grows from each to the next.
    flags = ["--learning_rate=0.001", "--views=2", "--cache_teacher"]
    return [*distill, *flags, f"--cache_dir={folder}/cache"]


@pytest.fixture(scope="module")
def uninterrupted(folder, arguments):
    path = folder / "workers"
    with workers("distill", *arguments, f"--run={path}") as found:
        codes, outputs = ended(found)
    assert codes == [0, 0], outputs
    chief, other = outputs
    assert "Epoch 4/4" in chief and "Epoch" not in other
    for output in outputs:
        assert f"{path} is finished" in output
    return path


@pytest.mark.slow
def test_a_dead_worker_ends_the_others_and_all_resume(
    folder, arguments, uninterrupted
):
    """Then one of them is told to end, and all do."""
    path = folder / "dead"
    arguments = [*arguments, f"--run={path}"]
    with workers("distill", *arguments) as found:
        (chief, output), (other, _) = found
        wait_for("Epoch 2/4", chief, output)
        os.kill(other.pid, signal.SIGKILL)
        chief.join(60)
        assert chief.exitcode == 1, output.read_text()
        assert "All workers must stay connected." in output.read_text()
    with workers("distill", *arguments) as found:
        (chief, output), (other, _) = found
        wait_for("Epoch 3/4", chief, output)
        os.kill(other.pid, signal.SIGTERM)
        codes, outputs = ended(found, 30)
        assert codes == [75, 75], outputs
    with workers("distill", *arguments) as found:
        codes, outputs = ended(found)
    assert codes == [0, 0], outputs
    assert "Resuming" in outputs[0] and "Preparing" not in outputs[0]
    assert_same_run(path, uninterrupted)


@pytest.mark.slow
def test_three_workers_train_a_network_alone(folder, data):
    """And with different flags they don't begin."""
    flags = ["--model=resnet_small", "--epochs=1", "--batch_size=15"]
    path = folder / "three"
    with workers("train", *data, *flags, f"--run={path}", count=3) as found:
        codes, outputs = ended(found)
    assert codes == [0, 0, 0], outputs
    assert (path / "report.html").exists()
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(
                started(
                    "training.train",
                    *data,
                    *flags,
                    f"--seed={index}",
                    f"--run={folder}/different",
                    "--strategy=multi_worker",
                    environment={"TF_CONFIG": config},
                )
            )
            for index, config in enumerate(tf_configs(3))
        ]
        codes, outputs = ended(found)
    assert codes == [1, 1, 1], outputs
    message = "All workers must have the same configuration."
    assert all(message in output for output in outputs)


@pytest.mark.slow
def test_several_workers_need_to_know_each_other(folder, data):
    flags = ["--model=resnet_small", "--strategy=multi_worker"]
    output = run("train", *data, *flags, f"--run={folder}/none", fails=True)
    assert "needs the environment variable TF_CONFIG" in output
