"""Checkpoints that a killed training resumes from."""

import io
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Sequence

import keras
import numpy as np

from keras_mhgd.files import write_atomically

_VERSION = 1


class Checkpoint(keras.callbacks.Callback):
    """Saves variables at the end of every epoch and restores the newest.

    A checkpoint is one `.npz` file, written to a temporary name and renamed,
    so a kill at any moment leaves the earlier ones intact. Its parts carry
    checksums: a damaged newest file is reported and the one before is used.

    Unlike `keras.callbacks.BackupAndRestore` it saves the variables that it
    is given (a distiller's without its teacher's), keeps the last ones, and
    does not delete them when training ends.

    Args:
        directory: Folder of the checkpoints; made if missing.
        variables: What to save, in a fixed order: those of the networks that
            train and of their optimizers, all built.
        keep: How many of the newest checkpoints are kept, >= 1.

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
        ...     initial_epoch=checkpoint.restore(),
        ...     callbacks=[checkpoint],
        ... )
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        variables: Sequence[keras.Variable],
        keep: int = 2,
    ):
        super().__init__()
        if keep < 1:
            raise ValueError(f"`keep` must be 1 or more. Received: keep={keep}")
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.keep = keep
        self._variables = list(variables)

    def on_epoch_end(self, epoch, logs=None):
        self.save(epoch + 1)

    def save(self, epochs: int) -> pathlib.Path:
        """Saves the state after `epochs` finished epochs; returns the file."""
        arrays = {
            f"variable_{index:05d}": keras.ops.convert_to_numpy(variable)
            for index, variable in enumerate(self._variables)
        }
        buffer = io.BytesIO()
        np.savez(buffer, version=_VERSION, epochs=epochs, **arrays)
        path = self.directory / f"epoch_{epochs:05d}.npz"
        write_atomically(path, buffer.getvalue())
        for old in self._files()[self.keep :]:
            old.unlink()
        return path

    def restore(self) -> int:
        """Restores the newest readable checkpoint.

        Returns:
            The number of finished epochs: what `fit` takes as
            `initial_epoch`; 0 if there is no checkpoint.

        Raises:
            ValueError: If a checkpoint belongs to other variables, or all
                checkpoints are damaged.
        """
        files = self._files()
        for path in files:
            try:
                content = io.BytesIO(path.read_bytes())
                with np.load(content, allow_pickle=False) as archive:
                    arrays = {key: archive[key] for key in archive.files}
            except (
                OSError,
                ValueError,
                EOFError,
                RuntimeError,  # flags that mean encryption, or unknown ones
                zipfile.BadZipFile,
            ) as error:
                warnings.warn(
                    f"The checkpoint {path} is damaged ({error}); the one "
                    "before it is used.",
                    stacklevel=2,
                )
                continue
            return self._assign(path, arrays)
        if files:
            raise ValueError(
                f"No checkpoint in {self.directory} can be read. "
                "Delete the folder to start this training anew."
            )
        return 0

    def _assign(self, path: pathlib.Path, arrays: dict[str, np.ndarray]) -> int:
        version, epochs = arrays.pop("version", None), arrays.pop("epochs", 0)
        values = [arrays[key] for key in sorted(arrays)]
        fits = len(values) == len(self._variables) and all(
            value.shape == tuple(variable.shape)
            for value, variable in zip(values, self._variables, strict=True)
        )
        if version != _VERSION or not fits:
            raise ValueError(
                f"The checkpoint {path} must hold the {len(self._variables)} "
                "variables of this training in format version "
                f"{_VERSION}. Received: {len(values)} arrays, version "
                f"{version}. Use another run folder."
            )
        for value, variable in zip(values, self._variables, strict=True):
            if value.dtype.kind == "V":
                # NumPy's files keep bfloat16's bytes but not its name.
                value = value.view(keras.ops.convert_to_numpy(variable).dtype)
            variable.assign(value)
        return int(epochs)

    def _files(self) -> list[pathlib.Path]:
        """All checkpoints, newest first."""
        return sorted(
            (
                path
                for path in self.directory.iterdir()
                if re.fullmatch(r"epoch_\d{5,}\.npz", path.name)
            ),
            reverse=True,
        )
