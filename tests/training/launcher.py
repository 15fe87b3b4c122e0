"""Starts programs by `training.runs.processes`, and keeps their output."""

import contextlib
import functools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping

from keras_mhgd.data import dataset, files
from training.runs import processes


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
        process = processes.start(
            module,
            arguments,
            before=functools.partial(
                _begin, str(output), dict(environment or {}), limit
            ),
        )
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


def read_when_needed() -> None:
    """Makes a small set be read as a large one is: a `limit`.

    The first image alone is read beforehand.
    """
    files._IN_MEMORY, files._CHECKED, dataset._SAMPLE = 0, 1, 1


def _begin(output, environment, limit):
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    if limit:
        limit()
