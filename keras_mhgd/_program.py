"""Imports TensorFlow without its log, in processes that are programs.

Python imports `keras_mhgd` before the module of a program that is in it, so
this must be done here. If other code imports `keras_mhgd`, the log stays as it
is.

Errors reach a program as exceptions, and TensorFlow always logs what ends the
process. `TF_CPP_MIN_LOG_LEVEL=3` silences the rest, except for what TensorFlow
2.21 logs while it is imported and while it quantizes, and what LiteRT 2.3 logs
when it opens the first file. A filter drops these lines and lets all others
pass, even if the process dies meanwhile. A user who sets a lower level sees
everything.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

# Tells the processes that a program starts that they belong to it.
_MARK = "KERAS_MHGD_PROGRAM"
_NOISE = (
    r"^WARNING: All log messages before absl::InitializeLog|^[IW][0-9]{4} "
    r"|^To enable the following instructions|^INFO: Created TensorFlow Lite "
    r"|^fully_quantize: "
)


def is_started() -> bool:
    """Says whether this process is a program of the package.

    It is if it was started as `keras-mhgd` or `python -m keras_mhgd`, or by
    such a process. The programs of a checkout set the mark themselves. While
    Python looks for the module of `-m`, the first argument is `-m` itself.
    """
    if _MARK in os.environ or not sys.argv:
        return _MARK in os.environ
    if sys.argv[0] != "-m":
        return pathlib.Path(sys.argv[0]).name == "keras-mhgd"
    _, *after = sys.orig_argv[sys.orig_argv.index("-m") :]
    return after[0].partition(".")[0] == "keras_mhgd" if after else False


def _is_log_hidden() -> bool:
    return os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") in ("2", "3")


@contextlib.contextmanager
def without_log() -> Iterator[None]:
    """Drops the log of TensorFlow and LiteRT, unless the user wants it."""
    if not _is_log_hidden():
        yield
        return
    errors = os.dup(2)
    shown = subprocess.Popen(
        ["grep", "--line-buffered", "-vE", _NOISE],
        stdin=subprocess.PIPE,
        stdout=errors,
    )
    os.dup2(shown.stdin.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        shown.communicate()


if is_started():
    os.environ[_MARK] = "1"
    with without_log():
        import tensorflow as tf
    if _is_log_hidden():
        tf.get_logger().setLevel("WARNING")
