"""Several worker processes that share a batch train like one process."""

import json
import os
import subprocess
import sys

import pytest

from tests.cluster import tf_configs
from tests.test_replicas import ROOT


def printed(count, *arguments):
    """Runs Python on so many workers, checks that each ends well."""
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "TF_CONFIG": config},
            text=True,
        )
        for config in tf_configs(count)
    ]
    try:
        outputs = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in outputs]


def trained(cases, count):
    """Gives what the workers printed."""
    outputs = printed(count, "-m", "tests.replicated", str(count), *cases)
    return [
        [json.loads(line) for line in output.splitlines()[-2:]]
        for output in outputs
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "cases"),
    [
        # Of 59 images the last batch is 11; of the 17 for validation it is 1.
        (
            2,
            [
                "outputs and graphs,59",
                "embeddings,59",
                "fitnet,59,no labels",
                "soft_logits,59,an overflow",
            ],
        ),
        (3, ["per_feature,59"]),
    ],
)
def test_weights_and_history_are_those_of_one_process(count, cases):
    outputs = trained(cases, count)
    for sums, _ in outputs:
        assert sums == outputs[0][0]  # to the last bit
    differences = outputs[0][1]
    assert differences.keys() == set(cases)
    assert max(differences.values()) < 1e-5, differences


@pytest.mark.slow
def test_a_network_of_several_outputs_trains_like_on_one_process():
    arguments = ["tests.tasks_on_devices", "2", "soft_logits", "two_heads"]
    chief, _ = printed(2, "-m", *arguments)
    assert json.loads(chief.splitlines()[-1])["two_heads"] < 1e-5


LEAVING = """
import os
import pathlib
import sys
import time

import tensorflow as tf

from keras_mhgd import replicas

how, path = sys.argv[1], pathlib.Path(sys.argv[2])
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    replicas.wait_for_workers()
    if replicas.is_chief():
        replicas.leave()
        assert how == "lost" or path.exists()
    elif how == "late":
        time.sleep(2)  # as one that has not yet heard what the chief said
        path.touch()
        replicas.leave()
    else:
        time.sleep(2)
        os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["late", "lost"])
def test_a_worker_ends_after_the_others_have_heard_it(how, tmp_path):
    """And it doesn't matter to it if they have ended before."""
    printed(2, "-c", LEAVING, how, tmp_path / "heard")
