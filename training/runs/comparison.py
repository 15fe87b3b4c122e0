"""Trains one student in several ways, each trial in its own run folder."""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import pathlib
import re
import shlex
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import keras_mhgd
from keras_mhgd.storage.files import (
    locked,
    read_json,
    require_writable,
    write_atomically,
)

from .. import commands
from . import processes
from .flags import Flags, command_line
from .interruption import EXIT_CODE, Interruption
from .progress import relayed
from .relay import Relay


@dataclasses.dataclass(frozen=True)
class Way:
    """Describes one way of training.

    Attributes:
        name: Its name in tables.
        program: `"train"` or `"distill"`.
        flags: Flags of the program that only this way has.
    """

    name: str
    program: str
    flags: Flags = dataclasses.field(default_factory=dict)

    @property
    def methods(self) -> list[keras_mhgd.methods.Method]:
        """Gives the methods that the way uses, with default arguments."""
        if "method" not in self.flags:
            return []
        return keras_mhgd.methods.parts(self.flags["method"])


class Comparison:
    """Runs all ways and trials of a comparison in one folder.

    Trial k of every way has seed k. Networks that a method learns from the
    teacher alone are made once and shared. The teacher's outputs on the views
    of a seed are shared, too.

    An interrupted comparison resumes if it is made again with the same
    arguments. Ways and trials may then be added.

    Args:
        directory: The folder; made if missing.
        ways: All ways.
        shared: Flags of all ways; a way's own flags override them.
        teacher: How to train the teacher, if the ways don't name one. This
            training runs once, with seed 0, before all others.

    Raises:
        OSError: If the folder can't be written.
        ValueError: If the names of two ways give the same folder name, if the
            folder holds a comparison with other shared flags or a way of the
            same name with other flags, or if its `config.json` is damaged.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        ways: Sequence[Way],
        shared: Flags,
        teacher: Way | None = None,
    ):
        self.directory = require_writable(directory)
        self.ways = list(ways)
        self._shared = dict(shared)
        self._teacher = teacher
        self._processes = _Processes()
        self._relay = Relay()
        names = [way.name for way in [*ways, teacher] if way]
        if len(set(map(_slug, names))) < len(names):
            raise ValueError(
                "All ways of a comparison must have names of their own, and "
                f"the teacher too. Received: {names}."
            )
        self._configure()

    def _configure(self) -> None:
        path = self.directory / "config.json"
        config = {"shared": self._shared, "ways": {}}
        if path.exists():
            config = read_json(path)
            if not all(
                isinstance(config.get(name), dict)
                for name in ("shared", "ways")
            ):
                raise ValueError(
                    f"{path} must hold the comparison's shared flags and its "
                    f"ways. Received: {config}. Put a whole file in its place, "
                    "or delete it: what the folder holds then counts as "
                    "trained by the present flags."
                )
        there = {_slug(name): flags for name, flags in config["ways"].items()}
        ways = [way for way in [*self.ways, self._teacher] if way]
        changed = [
            f"{name}: {before} there, {now} now"
            for name, before, now in (
                ("all ways", config["shared"], self._shared),
                *(
                    (way.name, there[_slug(way.name)], _described(way))
                    for way in ways
                    if _slug(way.name) in there
                ),
            )
            if before != now
        ]
        if changed:
            raise ValueError(
                f"The folder {self.directory} must hold a comparison with "
                "these flags. Received: a comparison with other flags "
                f"({'; '.join(changed)}). Choose another --run, or delete the "
                "folder."
            )
        config["ways"] |= {way.name: _described(way) for way in ways}
        write_atomically(path, json.dumps(config, indent=2) + "\n")

    def folder(self, way: Way, trial: int) -> pathlib.Path:
        """Gives the run folder of a trial."""
        return self.directory / f"{_slug(way.name)}_{trial}"

    def finished(self, trials: int) -> dict[str, list[pathlib.Path]]:
        """Gives the run folders of each way that has finished these trials."""
        folders = {
            way.name: [self.folder(way, trial) for trial in range(trials)]
            for way in self.ways
        }
        return {
            name: found
            for name, found in folders.items()
            if all((each / "result.json").exists() for each in found)
        }

    def run(self, trials: int, jobs: int) -> None:
        """Trains the trials that are not finished yet.

        On SIGTERM and SIGINT, the trainings save their state and end. Then the
        program ends: see `Interruption`.

        Args:
            trials: Seeds 0, 1, ... of each way.
            jobs: Number of trainings at a time, each in its own process.

        Raises:
            RuntimeError: If trainings failed; the message names them. The
                other trainings are finished first, unless the teacher's failed.
        """
        trainings = {}
        makers = {}  # the first training that prepares a method
        with (
            self._relay,
            concurrent.futures.ThreadPoolExecutor(jobs) as pool,
            self._processes,
            Interruption(),
        ):
            if self._teacher:
                first = pool.submit(self._train, self._teacher, 0, [])
                folder = self.folder(self._teacher, 0)
                _require_success({folder: first.result()})
            for trial in range(trials):
                for way in self.ways:
                    prepared = _prepared(way)
                    # A training waits for the one that prepares its method.
                    waits = [
                        makers[each] for each in prepared if each in makers
                    ]
                    training = pool.submit(self._train, way, trial, waits)
                    trainings[self.folder(way, trial)] = training
                    for each in prepared:
                        makers.setdefault(each, training)
            concurrent.futures.wait(trainings.values())
        _require_success(
            {folder: each.result() for folder, each in trainings.items()}
        )

    def _train(
        self,
        way: Way,
        trial: int,
        waits: Sequence[concurrent.futures.Future],
    ) -> int:
        """Trains one trial and returns its exit code."""
        folder = self.folder(way, trial)
        if (folder / "result.json").exists():
            return 0
        concurrent.futures.wait(waits)
        # A killed comparison may have left this training running. Nobody reads
        # its output now, so it ends at the next line that it prints.
        with locked(require_writable(folder), wait=True):
            pass
        flags = {}
        if way.program == "distill":
            flags["preparation_dir"] = self.directory / "preparations"
            flags["cache_dir"] = self.directory / f"teacher_{trial}"
            if self._teacher:
                flags["teacher"] = self.folder(self._teacher, 0)
        flags |= {**self._shared, **way.flags, "seed": trial, "run": folder}
        arguments = command_line(flags)
        output, output_end = multiprocessing.Pipe(duplex=False)
        errors, errors_end = multiprocessing.Pipe(duplex=False)
        with output, errors:
            with output_end, errors_end:
                process = self._processes.start(
                    commands.module(way.program),
                    arguments,
                    output_end,
                    errors_end,
                )
            command = f"{commands.called(way.program)} {shlex.join(arguments)}"
            self._relay.print(f"$ {command}")
            self._relay.follow(folder.name, output, errors)
        process.join()
        return process.exitcode


class _Processes:
    """Terminates the started trainings when its context ends."""

    def __init__(self):
        self._lock = threading.Lock()
        self._all = []
        self._ended = False

    def start(
        self,
        program: str,
        flags: Sequence[str],
        output: Connection,
        errors: Connection,
    ) -> BaseProcess:
        with self._lock:
            # No training may start after the others were terminated.
            if self._ended:
                raise SystemExit(EXIT_CODE)
            process = processes.start(program, flags, output, errors, relayed)
            self._all.append(process)
        return process

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, kind, error, trace) -> None:
        with self._lock:
            self._ended = error is not None
            for process in self._all:
                process.terminate()


def _prepared(way: Way) -> list[tuple[type, str]]:
    """Lists the methods that a way prepares, with the flags of its data.

    Ways that differ in other flags than those of methods don't share what they
    prepare.
    """
    flags = {
        name: value
        for name, value in way.flags.items()
        if name not in ("method", "set")
    }
    return [
        (type(each), json.dumps(flags, sort_keys=True))
        for each in way.methods
        if each.preparation and not each.preparation.done
    ]


def _require_success(codes: Mapping[pathlib.Path, int]) -> None:
    failed = [
        f"{folder} (exit code {code})" for folder, code in codes.items() if code
    ]
    if failed:
        raise RuntimeError(
            f"All trainings must succeed. Failed: {', '.join(failed)}. "
            "What they printed is above; the same command again goes on."
        )


def _slug(name: str) -> str:
    """Makes a folder name of letters, digits, `+` and `_`."""
    return re.sub(r"[^a-z0-9+]+", "_", name.lower()).strip("_")


def _described(way: Way) -> dict[str, Any]:
    return {"program": way.program, **way.flags}
