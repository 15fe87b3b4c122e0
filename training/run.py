"""Run folders: what a program leaves behind, and how it resumes."""

import csv
import io
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import keras

import keras_mhgd
from keras_mhgd.files import locked, require_writable, write_atomically
from training.networks import save_network
from training.preparations import Preparations
from training.report import of_run
from training.results import read_metrics, read_result, validated


class Run:
    """A folder with everything that one training leaves.

    `config.json`, `metrics.csv` (a row per epoch), `logs/` (TensorBoard),
    `checkpoints/`, `best.keras` and `last.keras` (the student),
    `result.json` and `report.html`.

    Args:
        directory: The folder; made if missing.
        config: Everything that determines the result, plain JSON values.

    Raises:
        OSError: If the folder is not writable.
        ValueError: If the folder holds a run of another configuration.
    """

    def __init__(self, directory: str | os.PathLike, config: dict[str, Any]):
        self.directory = require_writable(directory)
        self.config = config
        if self._config_file.exists():
            _require_equal(self._config_file, config)

    @property
    def _config_file(self) -> pathlib.Path:
        return self.directory / "config.json"

    @property
    def result(self) -> dict[str, Any] | None:
        """The content of `result.json`, or `None` before the run's end."""
        return read_result(self.directory)

    def fit(
        self,
        model: keras.Model,
        student: keras.Model,
        dataset: keras_mhgd.data.Dataset,
        variables: Sequence[keras.Variable],
        cache: keras_mhgd.TeacherCache | None = None,
        preparations: Preparations | None = None,
    ) -> None:
        """Trains to the last epoch, from the last checkpoint if there is one.

        Args:
            model: The compiled model whose `fit` is called.
            student: The network that is saved: `model` or its student.
            dataset: The data.
            variables: What a resumed training needs beside the optimizer's.
            cache: The teacher's features on the views of the images; `None`
                runs the teacher in each step.
            preparations: Where networks learnt from the teacher are kept for
                other runs.

        Raises:
            BlockingIOError: If another process trains in the folder.
        """
        with locked(self.directory):
            # Only now: a command that failed before leaves no configuration.
            write_atomically(self._config_file, _json(self.config))
            self._fit(model, student, dataset, variables, cache, preparations)

    def _fit(self, model, student, dataset, variables, cache, preparations):
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        checkpoint = keras_mhgd.callbacks.Checkpoint(
            self.directory / "checkpoints",
            [*variables, *model.optimizer.variables],
        )
        initial_epoch = checkpoint.restore()
        batch_size, epochs = self.config["batch_size"], self.config["epochs"]
        every = self.config["validation_freq"]
        data = {
            "x": cache.train(initial_epoch)
            if cache
            else dataset.train(
                batch_size,
                self.config["seed"],
                initial_epoch,
                views=self.config["views"],
            ),
            "steps_per_epoch": dataset.steps_per_epoch(batch_size),
            "shuffle": False,  # the stream is
            # A line an epoch where nobody sees a bar move.
            "verbose": 1 if sys.stdout.isatty() else 2,
        }
        recorder = Recorder(self.directory, student, initial_epoch)
        if initial_epoch:
            print(f"Resuming {self.directory} after epoch {initial_epoch}.")
        elif isinstance(model, keras_mhgd.Distiller):
            self._prepare(model, data, preparations)
            checkpoint.save(0)
        model.fit(
            **data,
            validation_data=dataset.test(batch_size=500),
            validation_freq=[*range(every, epochs, every), epochs],
            epochs=epochs,
            initial_epoch=initial_epoch,
            callbacks=[
                recorder,
                keras.callbacks.TensorBoard(
                    self.directory / "logs", write_graph=False
                ),
                checkpoint,
            ],
        )
        save_network(student, self.directory / "last.keras")
        self._finish(student, recorder.rows)

    def _prepare(self, model, data, preparations) -> None:
        if not model.method.prepared:
            model.prepare(**data)
        for name, network in model.method.artifacts().items():
            save_network(network, self.directory / f"{name}.keras")
        if preparations:
            preparations.keep(model.method)

    def _finish(self, student, rows) -> None:
        accuracies = [accuracy for _, accuracy in validated(rows)]
        result = {
            "accuracy": accuracies[-1],
            "best_accuracy": max(accuracies),
            "epochs": len(rows),
            "seed": self.config["seed"],
            "parameters": student.count_params(),
            "seconds": round(sum(row["seconds"] for row in rows), 1),
            "configuration": self.config,
        }
        write_atomically(
            self.directory / "report.html",
            of_run(self.directory.name, result, rows),
        )
        write_atomically(self.directory / "result.json", _json(result))


class Recorder(keras.callbacks.Callback):
    """Writes `metrics.csv` after every epoch and `best.keras` when due.

    Raises `FloatingPointError` after an epoch with a loss that is not finite.

    Args:
        directory: The run folder.
        student: The network to save.
        initial_epoch: Finished epochs: later rows of an earlier, killed
            process are dropped, since those epochs are trained again.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        student: keras.Model,
        initial_epoch: int = 0,
    ):
        super().__init__()
        self.directory = directory
        self.student = student
        path = directory / "metrics.csv"
        self.rows = read_metrics(path)[:initial_epoch] if initial_epoch else []

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        lost = [name for name in logs if not math.isfinite(logs[name])]
        if lost:
            raise FloatingPointError(
                f"The losses must be finite. Received NaN or infinity in "
                f"epoch {epoch + 1}: {', '.join(lost)}. Lower the learning "
                "rate or the method's weight. What was saved is of the epoch "
                "before."
            )
        best = max((value for _, value in validated(self.rows)), default=-1.0)
        if logs.get("val_accuracy", -1.0) > best:
            save_network(self.student, self.directory / "best.keras")
        rate = float(self.model.optimizer.learning_rate)
        seconds = round(time.monotonic() - self._begin, 3)
        self.rows.append(
            {"epoch": epoch + 1}
            | {name: float(value) for name, value in logs.items()}
            | {"learning_rate": rate, "seconds": seconds}
        )
        text = io.StringIO()
        names = {name: None for row in self.rows for name in row}
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.directory / "metrics.csv", text.getvalue())


def _require_equal(path: pathlib.Path, config: dict[str, Any]) -> None:
    found = json.loads(path.read_text())
    changed = [
        f"{name}: {found.get(name)!r} there, {config.get(name)!r} now"
        for name in sorted(found.keys() | config.keys())
        if found.get(name) != config.get(name)
    ]
    if changed:
        raise ValueError(
            f"The run folder {path.parent} holds a run of another "
            f"configuration ({'; '.join(changed)}). Choose another --run, or "
            "delete the folder."
        )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def report(run: Run) -> None:
    """Prints the result of a finished run."""
    result = run.result
    print(
        f"{run.directory} is finished: accuracy {result['accuracy']:.4f} "
        f"(best epoch {result['best_accuracy']:.4f}) after "
        f"{result['epochs']} epochs."
    )
