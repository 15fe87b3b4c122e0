"""Runs a program in several processes of this machine at once."""

import concurrent.futures
import contextlib
import functools
import json
import multiprocessing
import os
import socket
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from training.runs import processes


def results(
    module: str,
    arguments: Sequence[Any],
    variables: Sequence[Mapping[str, str]] = ({},),
) -> list[list[Any]]:
    """Runs `python -m module` in a process for each set of variables.

    Args:
        module: Name of the program's module.
        arguments: Its arguments.
        variables: Additional environment variables of each process.

    Returns:
        For each process, the JSON objects that it printed, one a line.

    Raises:
        RuntimeError: If a process fails; the message has its output.
    """
    started, outputs = [], []
    try:
        for each in variables:
            output, end = multiprocessing.Pipe(duplex=False)
            begin = functools.partial(_begin, dict(each))
            started.append(
                processes.start(module, arguments, end, before=begin)
            )
            outputs.append(output)
            end.close()
        with concurrent.futures.ThreadPoolExecutor(len(outputs)) as pool:
            texts = list(pool.map(_read, outputs))
        for process, text in zip(started, texts, strict=True):
            process.join()
            if process.exitcode:
                raise RuntimeError(f"A process failed: {text}")
    finally:
        for process in started:
            process.kill()
    return [
        [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        for text in texts
    ]


def _begin(variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    os.dup2(1, 2)  # errors go to the standard output


def _read(output: Connection) -> str:
    with os.fdopen(os.dup(output.fileno())) as lines, output:
        return lines.read()


def tf_configs(count: int) -> list[str]:
    """Makes the TF_CONFIG of each worker, on free ports of this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    return [
        json.dumps(
            {
                "cluster": {"worker": hosts},
                "task": {"type": "worker", "index": index},
            }
        )
        for index in range(count)
    ]
