"""Runs the tasks of a benchmark and writes the results to a folder."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.speed import presentation
from keras_mhgd.storage.files import (
    locked,
    read_json,
    require_writable,
    write_atomically,
)
from training.reports.machine import machine
from training.reports.pictures import save


class Benchmark:
    """Keeps the results of a benchmark in a folder.

    The folder holds `config.json`, `benchmark.json` (every round),
    `benchmark.csv`, `benchmark.md` and `benchmark.png`. The results are written
    after each task. The same command again runs only the missing tasks.

    Args:
        directory: The folder; made if missing.
        config: Settings that all tasks depend on, plain JSON values.

    Raises:
        OSError: If the folder can't be written.
        ValueError: If the folder holds a benchmark of another configuration.
    """

    def __init__(self, directory: str | os.PathLike, config: dict[str, Any]):
        self.directory = require_writable(directory)
        self._config = config
        path = self.directory / "config.json"
        there = read_json(path) if path.exists() else config
        if there != config:
            raise ValueError(
                f"The folder {self.directory} holds a benchmark of another "
                f"configuration ({there} there, {config} now). Choose another "
                "--run, or delete the folder."
            )
        write_atomically(path, json.dumps(config, indent=2) + "\n")
        self._file = self.directory / "benchmark.json"
        self.results = {}
        if self._file.exists():
            self.results = read_json(self._file)

    def run(self, tasks: Mapping[str, Callable[[], Any]]) -> None:
        """Runs the tasks that have no result yet.

        Args:
            tasks: By key, functions without arguments that return plain
                values.

        Raises:
            BlockingIOError: If another process is at work in the folder.
        """
        with locked(self.directory):
            for key, task in tasks.items():
                if key in self.results:
                    continue
                print(key, flush=True)
                self.results[key] = task()
                self._write()

    @property
    def text(self) -> str:
        """Writes the tables as Markdown."""
        words = machine(self._config["threads"])
        return presentation.text(
            self.results, words, self._config["batch_size"]
        )

    def _write(self) -> None:
        if any(key.startswith("steps/") for key in self.results):
            figure = presentation.picture(self.results)
            save(self.directory / "benchmark.png", figure)
        for name, content in (
            ("benchmark.csv", presentation.comma_separated(self.results)),
            ("benchmark.md", self.text),
            ("benchmark.json", json.dumps(self.results, indent=1) + "\n"),
        ):
            write_atomically(self.directory / name, content)
