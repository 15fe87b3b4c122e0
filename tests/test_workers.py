"""Several worker processes that share a batch train like one process."""

import json
import os
import subprocess
import sys

import pytest

from tests.cluster import tf_configs
from tests.test_replicas import PROGRAM


def trained(cases, count):
    """Checks that each ends well; gives what the workers printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, str(count), *cases],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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
    return [
        [json.loads(line) for line in output.splitlines()[-2:]]
        for output, _ in outputs
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "cases"),
    [
        # Of 59 images the last batch is 11; of the 17 for validation it is 1.
        (2, ["per_variable,59", "crd,59"]),
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
