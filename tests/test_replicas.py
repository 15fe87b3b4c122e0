"""Several devices that share a batch train like one."""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).with_name("replicated.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "cases"),
    [
        # 64 images are four batches of 16; of 59 the last is 11.
        ("2", ["per_variable,64", "per_feature,59", "rkd,64"]),
        ("2", ["fitnet as published,59", "keras,59", "crd,59"]),
        ("4", ["per_variable,59", "rkd,59", "soft_logits,59"]),
        # Losses that Keras divides by the number of replicas, and not.
        (
            "2",
            [
                "soft_logits,59,sum",
                "soft_logits,59,weighted mean",
                "soft_logits,59,function",
            ],
        ),
        # Each half of a batch with graphs of its own.
        ("2", ["replica sum,64", "replica mean,64"]),
        # A step that is skipped on all because of one.
        ("2", ["soft_logits,59,a bad batch", "rkd,59,a bad batch"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_weights_and_history_are_those_of_one_device(devices, cases):
    done = subprocess.run(
        [sys.executable, PROGRAM, devices, *cases],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout.splitlines()[-1])
    assert differences.keys() == set(cases)
    assert max(differences.values()) < 1e-5, differences
