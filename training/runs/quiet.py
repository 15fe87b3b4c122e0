"""Imports TensorFlow without what it logs for its developers.

Errors reach a program as exceptions, and TensorFlow always logs what ends the
process. `TF_CPP_MIN_LOG_LEVEL=3` silences the rest, except for what TensorFlow
2.21 logs while it is imported. A filter drops these lines and lets all others
pass, even if the process dies meanwhile. A user who sets a lower level sees
everything.
"""

import os
import subprocess
import sys

_NOISE = (
    r"^WARNING: All log messages before absl::InitializeLog|^[IW][0-9]{4} "
    r"|^To enable the following instructions"
)


def import_tensorflow() -> None:
    """Imports TensorFlow, and silences its log unless the user wants it."""
    if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") not in ("2", "3"):
        return
    if "tensorflow" not in sys.modules:
        _import_filtered()
    import tensorflow as tf

    tf.get_logger().setLevel("WARNING")


def _import_filtered() -> None:
    errors = os.dup(2)
    shown = subprocess.Popen(
        ["grep", "--line-buffered", "-vE", _NOISE],
        stdin=subprocess.PIPE,
        stdout=errors,
    )
    os.dup2(shown.stdin.fileno(), 2)
    try:
        import tensorflow  # noqa: F401
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        shown.communicate()
