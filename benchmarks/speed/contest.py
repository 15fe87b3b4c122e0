"""Times routes that take turns, in processes of their own.

A process imports only the modules of its own routes. Its peak memory is
therefore the memory of these routes.
"""

import importlib
import multiprocessing
import os
import pathlib
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

Run = Callable[[int], tuple[float, float]]
"""Runs a number of steps; returns wall-clock and CPU seconds of one step."""

_CONTEXT = multiprocessing.get_context("spawn")


def contest(
    hosts: Mapping[str, tuple[str, Mapping[str, Any]]],
    rounds: int,
    steps: int,
    threads: int,
    title: str,
) -> dict[str, Any]:
    """Lets routes take turns: in each round all run once, in random order.

    Args:
        hosts: For each process, the function that makes its routes, as
            `"module:function"`, and the function's keyword arguments, plain
            values. The function returns a `Run` for each route's name.
        rounds: Number of rounds.
        steps: Steps of a turn.
        threads: Threads of each process.
        title: Text at the start of each progress line.

    Returns:
        `rounds`, a list of `{route: [wall, cpu]}`, seconds a step, and
        `peaks`, the peak memory of each process in megabytes.

    Raises:
        RuntimeError: If a process ends early.
    """
    started, routes = {}, {}
    order = random.Random(0)
    made = []
    try:
        for name, (maker, arguments) in hosts.items():
            started[name] = _Host(name, maker, arguments, threads)
        for host in started.values():
            routes |= dict.fromkeys(host.receive(), host)
        for name, host in routes.items():
            host.ask((name, 2))  # warms up: traces, and fills caches
        for index in range(rounds):
            names = list(routes)
            order.shuffle(names)
            begin = time.monotonic()
            made.append(
                {name: routes[name].ask((name, steps)) for name in names}
            )
            print(
                f"{title}: round {index + 1} of {rounds}, "
                f"{time.monotonic() - begin:.1f} s",
                flush=True,
            )
        peaks = {name: host.ask(None) for name, host in started.items()}
    finally:
        for host in started.values():
            host.end()
    return {"rounds": made, "peaks": peaks}


def alone(function: str, arguments: Mapping[str, Any], threads: int) -> Any:
    """Calls a function in a process of its own.

    Args:
        function: `"module:function"`.
        arguments: Keyword arguments, plain values.
        threads: Threads of the process.

    Returns:
        What the function returns.
    """
    with _CONTEXT.Pool(1, _set_threads, (threads,)) as pool:
        return pool.apply(_call, (function, dict(arguments)))


def looped(function: Callable[[], Any]) -> Run:
    """Makes a `Run` from a function that runs one step."""

    def run(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            function()
        return (
            (time.perf_counter() - wall) / steps,
            (time.process_time() - cpu) / steps,
        )

    return run


def peak_memory() -> float:
    """Gives the peak memory of this process, in megabytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


class _Host:
    """Runs one route or several in a process."""

    def __init__(self, name, maker, arguments, threads):
        self._name = name
        self._connection, other = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(
            target=_serve,
            args=(other, maker, dict(arguments), threads),
            daemon=True,
        )
        self._process.start()
        other.close()

    def ask(self, question):
        self._connection.send(question)
        return self.receive()

    def receive(self):
        try:
            return self._connection.recv()
        except EOFError as error:
            self._process.join()
            raise RuntimeError(
                f"The process of {self._name!r} must answer. It ended with "
                f"exit code {self._process.exitcode}; what it printed is "
                "above. The same command again goes on."
            ) from error

    def end(self):
        self._connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection, maker, arguments, threads):
    _set_threads(threads)
    routes = _call(maker, arguments)
    connection.send(list(routes))
    while question := connection.recv():
        name, steps = question
        connection.send(routes[name](steps))
    connection.send(peak_memory())


def _set_threads(threads):
    for library in ("OMP_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
        os.environ[f"{library}_THREADS"] = str(threads)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _call(function, arguments):
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)(**arguments)
