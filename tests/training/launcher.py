"""Programs in processes of their own that need not import TensorFlow anew.

A server process has imported it, and each program is a fork of that server.
"""

import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["keras_mhgd"])


def launch(module: str, *arguments: str) -> tuple[int, str]:
    """Runs `python -m module`; returns exit code and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder, "output")
        process = _CONTEXT.Process(
            target=_main, args=(module, arguments, str(output))
        )
        process.start()
        process.join()
        return process.exitcode, output.read_text()


def _main(module, arguments, output):
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
