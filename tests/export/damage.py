"""Damages a file in many ways and reads each: a program for the tests.

python -m tests.export.damage <network> <file of it> <count>

Prints how many were refused with a ValueError and how many were read and gave
an answer or refused to; any other end is the reader's fault.
"""

import pathlib
import sys

import numpy as np

from keras_mhgd import export
from tests.damage import damage_bytes


def main(network: str, path: pathlib.Path, count: int) -> None:
    whole = path.read_bytes()
    refused = 0
    for seed in range(count):
        path.write_bytes(damage_bytes(np.random.default_rng(seed), whole))
        try:
            predict = export.load(network)
        except ValueError:
            refused += 1
            continue
        try:
            predict(np.zeros((1, 8), "float32"))
        except (RuntimeError, ValueError):
            pass
    path.write_bytes(whole)
    print(refused, count - refused)


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))
