"""Programs in processes of their own that need not import TensorFlow anew.

A server process has imported it, and each program is a fork of that server.
"""

import contextlib
import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["keras_mhgd"])


@contextlib.contextmanager
def started(
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    limit: Callable[[], None] | None = None,
):
    """Runs `python -m module`: gives the process, and what it prints a file.

    Killed at the end if it still runs. `environment` is added to the process's
    own, and `limit` is called in it before the program.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder, "output")
        output.touch()
        environment = environment or {}
        process = CONTEXT.Process(
            target=_main,
            args=(module, arguments, str(output), environment, limit),
        )
        process.start()
        try:
            yield process, output
        finally:
            process.kill()
            process.join()


def launch(module: str, *arguments: str, **options) -> tuple[int, str]:
    """Runs `python -m module`; returns exit code and what it printed."""
    with started(module, *arguments, **options) as (process, output):
        process.join()
        return process.exitcode, output.read_text()


def _main(module, arguments, output, environment, limit):
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # readable after a kill
    if limit:
        limit()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
