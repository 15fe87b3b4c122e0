"""Silences TensorFlow's log if this process was started as a program.

In an installed package, Python imports `keras_mhgd` before
`keras_mhgd.training`, which silences the log of the programs. This would be too
late, because `keras_mhgd` imports TensorFlow. If other code imports
`keras_mhgd`, the log stays as it is.
"""

import contextlib
import importlib
import os
import pathlib
import sys

# Tells the processes that a program starts that they belong to it.
_MARK = "KERAS_MHGD_PROGRAM"


def is_started() -> bool:
    """Says whether this process is a program of the package.

    It is if it was started as `keras-mhgd` or `python -m keras_mhgd`, or by
    such a process. While Python looks for the module of `-m`, the first
    argument is `-m` itself.
    """
    if _MARK in os.environ or not sys.argv:
        return _MARK in os.environ
    if sys.argv[0] != "-m":
        return pathlib.Path(sys.argv[0]).name == "keras-mhgd"
    _, *after = sys.orig_argv[sys.orig_argv.index("-m") :]
    return after[0].partition(".")[0] == "keras_mhgd" if after else False


if is_started():
    os.environ[_MARK] = "1"
    with contextlib.suppress(ModuleNotFoundError):  # in a checkout
        importlib.import_module("keras_mhgd.training")
