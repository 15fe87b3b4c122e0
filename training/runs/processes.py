"""Starts programs that need not import TensorFlow: they are forks.

A server process has imported it, and each program is a fork of that server.
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
    before: Callable[[], None] | None = None,
) -> BaseProcess:
    """Starts `python -m module`, in a session of its own.

    Args:
        module: Name of the program's module.
        arguments: Its flags.
        output: Where its standard output goes; by default to that of this
            process.
        before: What it calls first; it can be pickled.
    """
    process = _CONTEXT.Process(
        target=_run, args=(module, list(map(str, arguments)), output, before)
    )
    with _starting, _no_main():
        process.start()
    return process


def _run(module, arguments, output, before):
    os.setsid()  # a terminal's SIGINT would reach it beside ours
    if output is not None:
        os.dup2(output.fileno(), sys.stdout.fileno())
        output.close()
    sys.stdout.reconfigure(write_through=True)
    if before is not None:
        before()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@contextlib.contextmanager
def _no_main():
    """Hides the main module: children would import it, and its flags."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
