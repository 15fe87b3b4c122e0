"""Starts programs as forks, so that they need not import TensorFlow.

A server process imports TensorFlow once. Each program is a fork of the server.
"""

import contextlib
import multiprocessing
import os
import runpy
import sys
import threading
import types
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["keras_mhgd"])
_starting = threading.Lock()


def start(
    module: str,
    arguments: Sequence[Any],
    output: Connection | None = None,
    errors: Connection | None = None,
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Starts a program like `python -m module`, in its own session.

    Args:
        module: Name of the program's module.
        arguments: Its flags.
        output: Connection for the program's standard output; `None` uses the
            standard output of this process.
        errors: The same for its standard error.
        before: Function that the program calls first; it must be picklable.
    """
    process = _CONTEXT.Process(
        target=_run,
        args=(module, list(map(str, arguments)), output, errors, before),
    )
    with _starting, _no_main():
        process.start()
    return process


def _run(module, arguments, output, errors, before):
    os.setsid()  # a terminal sends SIGINT only to the parent then
    for descriptor, connection in ((1, output), (2, errors)):
        if connection is not None:
            os.dup2(connection.fileno(), descriptor)
            connection.close()
    sys.stdout.reconfigure(write_through=True)
    if before is not None:
        before()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def _no_main():
    """Hides the main module, which children would import with its flags."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
