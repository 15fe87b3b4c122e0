"""Imports TensorFlow for a program, without the lines that it logs then.

`TF_CPP_MIN_LOG_LEVEL` silences TensorFlow's log, but not what TensorFlow 2.21
logs before its logging begins, nor an error about a missing GPU. A filter drops
these lines while TensorFlow is imported and looks for devices. All other lines
pass, also if the process dies meanwhile. A user who sets the variable sees what
TensorFlow logs at that level.
"""

import os
import subprocess
import sys

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_NOISE = (
    r"^WARNING: All log messages before absl::InitializeLog|^[IW][0-9]{4} "
    r"|^To enable the following instructions|failed call to cuInit"
)


def import_tensorflow() -> None:
    """Imports TensorFlow if it isn't yet, and shows its errors only."""
    if "tensorflow" in sys.modules or _LEVEL in os.environ:
        return
    os.environ[_LEVEL] = "2"
    errors = os.dup(2)
    shown = subprocess.Popen(
        ["grep", "--line-buffered", "-vE", _NOISE],
        stdin=subprocess.PIPE,
        stdout=errors,
    )
    os.dup2(shown.stdin.fileno(), 2)
    try:
        import tensorflow as tf

        tf.config.list_physical_devices()
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        shown.communicate()
