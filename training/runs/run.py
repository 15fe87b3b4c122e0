"""Trains in a run folder, writes the results there, and resumes runs."""

import contextlib
import csv
import functools
import io
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from keras_mhgd import finiteness
from keras_mhgd.callbacks import Checkpoint, Position
from keras_mhgd.distribution import fitting, replicas
from keras_mhgd.graph import GraphRecord, drawing
from keras_mhgd.storage.files import (
    locked,
    read_json,
    require_writable,
    write_atomically,
)
from keras_mhgd.storage.networks import save_network

from ..reports.run_report import run_page
from ..saved.results import (
    measure_teacher,
    read_metrics,
    read_result,
    validated,
    write_predictions,
)
from . import watching
from .interruption import Interruption
from .progress import Progress

# What TensorFlow raises if a file can't be read or decoded.
_OF_FILES = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.UnknownError,  # an error in Python
)


@contextlib.contextmanager
def damage_named(dataset: keras_mhgd.data.Dataset) -> Iterator[None]:
    """Names the damaged file that ends work on a set: TensorFlow doesn't.

    Raises:
        ValueError: Instead of TensorFlow's error, if an image is damaged.
        OSError: Instead of it, if a file can't be read.
    """
    try:
        yield
    except _OF_FILES as error:
        # Reading all images of a large set takes long.
        if not finiteness.raised(error):
            print("TensorFlow has failed: looking for a damaged image.")
            dataset.require_whole()
        raise


class Run:
    """Trains in a folder that keeps everything a training leaves.

    The folder holds `config.json`, `metrics.csv` (a row per epoch), `logs/`
    (TensorBoard), `checkpoints/`, `best.keras` and `last.keras` (the student),
    `predictions.npz` (the student's classes of the test samples),
    `attention.npz` and `attention.png` (the graphs of MHGD), `teacher.json`
    (what the teacher of a distillation is and reaches), `result.json` and
    `report.html`.

    Args:
        directory: The folder; made if missing.
        config: Everything that determines the result, plain JSON values.

    Raises:
        OSError: If the folder is not writable.
        ValueError: If the folder holds a run of another configuration, or if
            its `config.json` is damaged.
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
    def _teacher_file(self) -> pathlib.Path:
        return self.directory / "teacher.json"

    @property
    def _checkpoints(self) -> pathlib.Path:
        return self.directory / "checkpoints"

    @property
    def result(self) -> dict[str, Any] | None:
        """Reads the content of `result.json`; `None` before the run's end."""
        return read_result(self.directory)

    @property
    def teacher(self) -> dict[str, Any] | None:
        """Reads what `measured_teacher` has found; `None` before that."""
        if not self._teacher_file.exists():
            return None
        found = read_json(self._teacher_file)
        # A command that failed before it wrote `config.json` may have left it.
        same = found.get("configuration") == self.config
        return found.get("teacher") if same else None

    def measured_teacher(
        self,
        distiller: keras_mhgd.Distiller,
        dataset: keras_mhgd.data.Dataset,
    ) -> dict[str, Any]:
        """Measures the teacher, once in the life of a run.

        Returns:
            See `measure_teacher`.
        """
        teacher = self.teacher
        if teacher is None:
            teacher = measure_teacher(
                distiller, dataset, self.config["batch_size"]
            )
            content = {"teacher": teacher, "configuration": self.config}
            write_atomically(self._teacher_file, _json(content))
        return teacher

    def write_config(self) -> None:
        """Writes `config.json`.

        Call it only when the work begins: a command that fails earlier then
        leaves no file.
        """
        write_atomically(self._config_file, _json(self.config))

    def fit(
        self,
        model: keras.Model,
        student: keras.Model,
        dataset: keras_mhgd.data.Dataset,
        variables: Sequence[keras.Variable],
        interruption: Interruption,
        cache: keras_mhgd.TeacherCache | None = None,
        preparations: keras_mhgd.Preparations | None = None,
        save_freq: int | None = None,
        profile: tuple[int, int] | None = None,
    ) -> None:
        """Trains to the last epoch, from the last checkpoint if there is one.

        Call `fit` in the scope of the strategy. With several workers, only the
        chief writes files.

        Args:
            model: The compiled model whose `fit` is called.
            student: The network that is saved: `model` or its student.
            dataset: The data.
            variables: Variables that a resumed training needs beside those of
                the optimizer.
            interruption: Saves the state and ends the program on a signal.
            cache: The teacher's features on the views of the images; `None`
                runs the teacher in each step.
            preparations: Keeps networks learnt from the teacher for other
                runs; `None` keeps none.
            save_freq: Steps from one checkpoint to the next within an epoch;
                `None` saves none within epochs. The end of each epoch always
                has a checkpoint.
            profile: First and last batch that are profiled; `None` for none.

        Raises:
            BlockingIOError: If another process trains in the folder.
        """
        replicas.require_same("configuration", self.config)
        chief = replicas.is_chief()
        with contextlib.ExitStack() as stack:
            if chief:
                stack.enter_context(locked(self.directory))
                self.write_config()
            test = _test(dataset)
            fitting.build(model, student.output_shape, test)
            checkpoint = Checkpoint(
                self._checkpoints,
                [*variables, *model.optimizer.variables],
                save_freq=save_freq,
            )
            stack.enter_context(damage_named(dataset))
            stack.enter_context(self._damage_found(dataset, checkpoint))
            position = checkpoint.restore()
            data = self._data(dataset, cache)
            if any(position):
                print(f"Resuming {self.directory} {_after(position)}.")
            elif isinstance(model, keras_mhgd.Distiller):
                if preparations:
                    preparations.restore(model.methods)
                self._prepare(model, dataset, data, interruption, save_freq)
                if preparations and chief:
                    preparations.keep(model.methods)
                checkpoint.save(0)
            shown = [Progress()] if chief else []
            recorder = Recorder(self.directory, student, position.epochs)
            epochs, every = (
                self.config["epochs"],
                self.config["validation_freq"],
            )
            _fit_from(
                position,
                _fit_of(model),
                **data,
                validation_data=test,
                validation_freq=[*range(every, epochs, every), epochs],
                epochs=epochs,
                verbose=0,  # `Progress` shows it
                callbacks=[
                    *shown,
                    finiteness.RequireFinite(),
                    recorder,
                    *watching.callbacks(
                        self.directory, model, dataset, epochs, profile
                    ),
                    checkpoint,
                    interruption.callback(checkpoint),
                ],
            )
            if chief:
                save_network(student, self.directory / "last.keras")
                self._finish(student, dataset, recorder.rows)
            replicas.wait_for_workers()
            replicas.leave()

    @contextlib.contextmanager
    def _damage_found(self, dataset, checkpoint):
        """Looks for a damaged file first where the training has ended.

        Reading all images of a large set would take long.
        """
        try:
            yield
        except _OF_FILES:
            dataset.require_readable(
                self.config["batch_size"],
                self.config["seed"],
                *checkpoint.position,
                self.config["views"],
            )
            raise

    def _data(self, dataset, cache) -> dict[str, Any]:
        """Makes arguments of `fit`; `x` makes batches from a position on."""
        batch_size = self.config["batch_size"]

        def stream(position):
            place = {
                "initial_epoch": position.epochs,
                "initial_step": position.steps,
            }
            if cache:
                batches = fitting.Shared(
                    lambda share: cache.train(**place, share=share)
                )
            else:
                batches = fitting.Shared(
                    lambda share: dataset.train(
                        batch_size,
                        self.config["seed"],
                        views=self.config["views"],
                        **place,
                        share=share,
                    )
                )
            if _on_tpu():
                size = len(dataset.x_train)
                return fitting.static_batches(batches.whole, batch_size, size)
            return batches

        return {
            "x": stream,
            "steps_per_epoch": dataset.steps_per_epoch(batch_size),
            "shuffle": False,  # the stream is shuffled already
        }

    def _prepare(self, model, dataset, data, interruption, save_freq) -> None:
        """Prepares the methods, from the last checkpoint if there is one."""
        shown = [Progress()] if replicas.is_chief() else []

        def fit(trainer, callbacks, verbose, **arguments):
            checkpoint = Checkpoint(
                self._checkpoints / trainer.name,
                [*trainer.variables, *trainer.optimizer.variables],
                save_freq=save_freq,
            )
            position = checkpoint.restore()
            if any(position):
                print(f"Resuming {trainer.name} {_after(position)}.")
            with self._damage_found(dataset, checkpoint):
                _fit_from(
                    position,
                    _fit_of(trainer),
                    **arguments,
                    verbose=0,  # `Progress` shows it
                    callbacks=[
                        *shown,
                        *callbacks,
                        checkpoint,
                        interruption.callback(checkpoint),
                    ],
                )

        if not model.prepared:
            model.prepare(**data, verbose=1, fit=fit)
        if replicas.is_chief():
            for name, network in model.prepared_networks.items():
                save_network(network, self.directory / f"{name}.keras")

    def _finish(self, student, dataset, rows) -> None:
        # `predict` would wait for the other workers, which don't call it.
        outputs = [
            student(images, training=False)
            for images, _ in dataset.test(batch_size=500)
        ]
        predicted = np.concatenate(outputs).argmax(axis=-1)
        write_predictions(self.directory, dataset.y_test, predicted)
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
        if self.teacher:
            result["teacher"] = self.teacher
        watching.write_hparams(
            self.directory / "logs",
            watching.hyperparameters(self.config),
            {name: result[name] for name in ("accuracy", "best_accuracy")},
        )
        graphs = GraphRecord.load(self.directory / "attention.npz")
        if graphs:
            png = tf.io.encode_png(drawing.draw_edges(graphs)).numpy()
            write_atomically(self.directory / "attention.png", png)
        write_atomically(
            self.directory / "report.html",
            run_page(
                self.directory.name, result, rows, dataset, predicted, graphs
            ),
        )
        write_atomically(self.directory / "result.json", _json(result))


class Recorder(keras.callbacks.Callback):
    """Writes `metrics.csv` after each epoch, and `best.keras` after the best.

    Args:
        directory: The run folder.
        student: The network to save.
        initial_epoch: Number of finished epochs. A killed process may have
            written later rows; they are dropped, since their epochs are
            trained again.
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
        best = max((value for _, value in validated(self.rows)), default=-1.0)
        chief = replicas.is_chief()
        if chief and logs.get("val_accuracy", -1.0) > best:
            save_network(self.student, self.directory / "best.keras")
        rate = float(self.model.optimizer.learning_rate)
        seconds = round(time.monotonic() - self._begin, 3)
        self.rows.append(
            {"epoch": epoch + 1}
            | {name: float(value) for name, value in logs.items()}
            | {"learning_rate": rate, "seconds": seconds}
        )
        if chief:
            write_atomically(self.directory / "metrics.csv", _csv(self.rows))


def _test(
    dataset: keras_mhgd.data.Dataset,
) -> tf.data.Dataset | fitting.Shared:
    if not _on_tpu():
        return fitting.Shared(lambda share: dataset.test(500, share))
    size = len(dataset.x_test)
    batch_size = max(each for each in range(1, 501) if size % each == 0)
    batches = dataset.test(batch_size)
    return fitting.static_batches(batches, batch_size, size)


def _on_tpu() -> bool:
    return isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def _csv(rows: list[dict[str, float]]) -> str:
    text = io.StringIO()
    names = {name: None for row in rows for name in row}
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _fit_of(model: keras.Model) -> Callable:
    if isinstance(model, keras_mhgd.Distiller):
        return model.fit
    return functools.partial(fitting.fit, model)


def _fit_from(
    position: Position,
    fit: Callable,
    x: Callable[[Position], tf.data.Dataset | fitting.Shared],
    steps_per_epoch: int,
    epochs: int,
    **arguments: Any,
) -> None:
    """Continues `fit` from a checkpoint, which may lie within an epoch."""
    epoch, steps = position
    if steps:
        fit(
            x(position),
            steps_per_epoch=steps_per_epoch - steps,
            initial_epoch=epoch,
            epochs=epoch + 1,
            **arguments,
        )
        epoch += 1
    if epoch < epochs:
        fit(
            x(Position(epoch, 0)),
            steps_per_epoch=steps_per_epoch,
            initial_epoch=epoch,
            epochs=epochs,
            **arguments,
        )


def _after(position: Position) -> str:
    steps = f" and {position.steps} steps" if position.steps else ""
    return f"after epoch {position.epochs}{steps}"


def _require_equal(path: pathlib.Path, config: dict[str, Any]) -> None:
    found = read_json(path)
    changed = [
        f"{name}: {found.get(name)!r} there, {config.get(name)!r} now"
        for name in sorted(found.keys() | config.keys())
        if found.get(name) != config.get(name)
    ]
    if changed:
        raise ValueError(
            f"The run folder {path.parent} must hold a run of this "
            "configuration. Received: a run of another configuration "
            f"({'; '.join(changed)}). Choose another --run, or delete the "
            "folder."
        )


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
