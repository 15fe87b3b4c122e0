"""Saves checkpoints from which a killed training resumes."""

import hashlib
import io
import os
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np

from keras_mhgd.checks import require_one_or_more
from keras_mhgd.distribution import replicas
from keras_mhgd.storage.arrays import read_arrays
from keras_mhgd.storage.files import write_atomically

_VERSION = 2
_NAME = re.compile(r"epoch_(\d{5,})(?:_step_(\d{6,}))?\.npz")
_DIGEST = hashlib.sha256().digest_size


class Position(NamedTuple):
    """Describes how far a training has come.

    Attributes:
        epochs: Number of finished epochs.
        steps: Number of finished steps of the next epoch.
    """

    epochs: int
    steps: int


class Checkpoint(keras.callbacks.Callback):
    """Saves variables at the end of every epoch, and restores the newest.

    A checkpoint is one `.npz` file with a checksum at its end. The file is
    written to a temporary name and then renamed, so a kill at any moment
    leaves earlier checkpoints intact. If the newest file is damaged, a warning
    reports it, and the file before it is used.

    With `save_freq`, checkpoints are also saved within epochs. To resume from
    such a checkpoint, train on the rest of the epoch's data first. After
    `position = checkpoint.restore()`, call `fit` with
    `initial_epoch=position.epochs` on `stream.skip(position.steps)`, with
    `position.steps` fewer steps. The metrics of that epoch then include the
    steps before. For this, the metrics must be built: call `evaluate` on one
    batch before `fit`.

    Unlike `keras.callbacks.BackupAndRestore`, the callback saves only the
    given variables, so a distiller's teacher can be left out. It keeps the
    newest checkpoints and does not delete them when training ends. With
    several workers, the chief writes the checkpoints and all workers restore
    them, so the workers must share the folder.

    Args:
        directory: Folder of the checkpoints; made if missing.
        variables: Variables to save, in a fixed order: those of the networks
            that train and of their optimizers, all built.
        keep: How many of the newest checkpoints are kept, >= 1.
        save_freq: Steps from one checkpoint to the next within an epoch, >= 1.
            `None` saves only at the end of epochs.

    Attributes:
        position: How far the training has come.

    Example:
        >>> student.compile("sgd", "mse")
        >>> student.optimizer.build(student.trainable_variables)
        >>> checkpoint = keras_mhgd.callbacks.Checkpoint(
        ...     "run/checkpoints",
        ...     student.variables + student.optimizer.variables,
        ... )
        >>> history = student.fit(
        ...     images,
        ...     targets,
        ...     epochs=2,
        ...     verbose=0,
        ...     initial_epoch=checkpoint.restore().epochs,
        ...     callbacks=[checkpoint],
        ... )
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        variables: Sequence[keras.Variable],
        keep: int = 2,
        save_freq: int | None = None,
    ):
        super().__init__()
        require_one_or_more(keep=keep)
        if save_freq is not None:
            require_one_or_more(save_freq=save_freq)
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.keep = keep
        self.save_freq = save_freq
        self.position = Position(0, 0)
        self._variables = list(variables)
        self._metrics = []  # saved metrics of an unfinished epoch, to restore

    def on_epoch_begin(self, epoch, logs=None):
        if self._metrics:
            # Keras resets all metrics before it calls this method.
            variables = _variables_of(self.model.metrics)
            if not _fit(self._metrics, variables):
                raise ValueError(
                    "The model's metrics must be those that were saved, and "
                    f"built. Received: {len(variables)} variables of metrics, "
                    f"for {len(self._metrics)} saved ones. `evaluate` one "
                    "batch before `fit`: it builds them."
                )
            _assign(variables, self._metrics)
            self._metrics = []
        else:
            self.position = Position(epoch, 0)
        self._first = self.position.steps

    def on_train_batch_end(self, batch, logs=None):
        before, steps = self.position.steps, self._first + batch + 1
        self.position = self.position._replace(steps=steps)
        every = self.save_freq
        due = every and steps // every > before // every
        if due and not self.epoch_ends(batch):
            self.save(*self.position)

    def epoch_ends(self, batch: int) -> bool:
        """Checks whether a batch ends its epoch.

        Args:
            batch: Number of the batch, counted from 0 in an epoch of `fit`.

        Returns:
            Whether it is the last one. False if `fit` doesn't know yet how many
            batches an epoch has.
        """
        return batch + 1 == self.params["steps"]

    def on_epoch_end(self, epoch, logs=None):
        self.position = Position(epoch + 1, 0)
        self.save(*self.position)

    def save(self, epochs: int, steps: int = 0) -> pathlib.Path:
        """Saves the state after the given epochs and steps.

        Within an epoch, the metrics of the model that trains are saved as well.
        Only the chief of several workers writes, and all wait for it.

        Args:
            epochs: Number of finished epochs.
            steps: Number of finished steps of the next epoch.

        Returns:
            The path of the checkpoint.

        Raises:
            OSError: If the file can't be written.
        """
        arrays = {"variable": self._variables}
        name = f"epoch_{epochs:05d}"
        if steps:
            arrays["metric"] = _variables_of(self.model.metrics)
            name += f"_step_{steps:06d}"
        arrays = {
            f"{kind}_{index:05d}": keras.ops.convert_to_numpy(variable)
            for kind, variables in arrays.items()
            for index, variable in enumerate(variables)
        }
        path = self.directory / f"{name}.npz"
        if replicas.is_chief():
            arrays |= {"version": _VERSION, "position": (epochs, steps)}
            _write(path, arrays)
            for old in self._files()[self.keep :]:
                old.unlink()
        replicas.wait_for_workers()
        return path

    def restore(self) -> Position:
        """Restores the newest undamaged checkpoint.

        Returns:
            How far the training had come, with 0 epochs and steps if there is
            no checkpoint. `fit` takes the epochs as `initial_epoch`.

        Raises:
            ValueError: If the checkpoint belongs to other variables, or if all
                checkpoints are damaged.
        """
        files = self._files()
        self._restore_newest(files)
        replicas.require_same("checkpoint", tuple(self.position))
        return self.position

    def _restore_newest(self, files: list[pathlib.Path]) -> None:
        for path in files:
            try:
                arrays = _read(path)
            except (OSError, ValueError) as error:
                warnings.warn(
                    f"The checkpoint {path} is damaged ({error}); the one "
                    "before it is used.",
                    stacklevel=2,
                )
                continue
            self._restore(path, arrays)
            return
        if files:
            raise ValueError(
                f"{self.directory} must hold a checkpoint that can be read. "
                f"Received: {len(files)} that are damaged. Delete the folder "
                "to start this training anew."
            )

    def _restore(self, path: pathlib.Path, arrays: dict[str, np.ndarray]):
        version, position = (
            arrays.get(name, np.array(None)) for name in ("version", "position")
        )
        values, metrics = (
            [arrays[name] for name in sorted(arrays) if name.startswith(kind)]
            for kind in ("variable_", "metric_")
        )
        if (
            version.tolist() != _VERSION
            or (position.shape, position.dtype.kind) != ((2,), "i")
            or not _fit(values, self._variables)
        ):
            raise ValueError(
                f"The checkpoint {path} must hold the {len(self._variables)} "
                "variables of this training in format version "
                f"{_VERSION}. Received: {len(values)} arrays, version "
                f"{version.tolist()}. Use another run folder."
            )
        _assign(self._variables, values)
        self.position = Position(*map(int, position))
        self._metrics = metrics

    def _files(self) -> list[pathlib.Path]:
        """All checkpoints, newest first."""
        found = [
            (match, path)
            for path in self.directory.iterdir()
            if (match := _NAME.fullmatch(path.name))
        ]
        found.sort(key=lambda pair: [int(n or 0) for n in pair[0].groups()])
        return [path for _, path in reversed(found)]


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    write_atomically(path, content + hashlib.sha256(content).digest())


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    content, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum is wrong")
    return read_arrays(io.BytesIO(content))


def _variables_of(metrics: Sequence[keras.metrics.Metric]):
    return [variable for metric in metrics for variable in metric.variables]


def _fit(
    values: Sequence[np.ndarray], variables: Sequence[keras.Variable]
) -> bool:
    def form(array):
        # NumPy's files keep bfloat16's bytes but not its name.
        return array.shape, array.dtype.kind, array.dtype.itemsize

    return [form(value) for value in values] == [
        form(keras.ops.convert_to_numpy(variable)) for variable in variables
    ]


def _assign(
    variables: Sequence[keras.Variable], values: Sequence[np.ndarray]
) -> None:
    for value, variable in zip(values, variables, strict=True):
        if value.dtype.kind == "V":
            value = value.view(keras.ops.convert_to_numpy(variable).dtype)
        variable.assign(value)
