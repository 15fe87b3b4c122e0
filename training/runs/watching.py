"""Writes a run's scalars, graphs and hyperparameters for TensorBoard."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

import keras_mhgd
from keras_mhgd.callbacks import AttentionGraphs
from keras_mhgd.distribution import replicas

from .flags import parsed

_CLASSES, _SAMPLES = 8, 8  # classes whose graphs are drawn, images of each
_LOOKS = 5  # drawings during a training, after one before it


def callbacks(
    directory: pathlib.Path,
    model: keras.Model,
    dataset: keras_mhgd.data.Dataset,
    epochs: int,
    profile: Sequence[int] | None = None,
) -> list[keras.callbacks.Callback]:
    """Makes the callbacks that watch a training.

    Args:
        directory: The run folder: events go to `logs`, and the graphs of
            MHGD to `attention.npz`.
        model: The model that is trained.
        dataset: The data, whose test images are used for the graphs.
        epochs: Number of epochs of the whole training.
        profile: First and last batch that are profiled; `None` for none.

    Returns:
        The callback of TensorBoard and, if MHGD trains, the callback of its
        graphs. The list is empty on a worker that is not the chief.
    """
    if not replicas.is_chief():
        return []
    logs = directory / "logs"
    made = [_EpochTensorBoard(logs, write_graph=False)]
    if profile:
        made = [
            keras.callbacks.TensorBoard(
                logs, write_graph=False, profile_batch=tuple(profile)
            )
        ]
    if _draws_graphs(model):
        probe = _probe(dataset)
        made.append(
            AttentionGraphs(
                directory / "logs" / "attention",
                dataset.normalise(dataset.x_test[probe]),
                dataset.y_test[probe],
                dataset.classes,
                freq=max(1, epochs // _LOOKS),
                file=directory / "attention.npz",
            )
        )
    return made


class _EpochTensorBoard(keras.callbacks.TensorBoard):
    """Writes the logs of epochs, and does nothing after steps.

    Keras 3.15 converts the logs of each step to tensors even if it doesn't
    write them. TensorFlow keeps a tensor for each number that it has ever
    converted, so memory would grow by 2 kB a step.
    """

    def on_train_batch_end(self, batch, logs=None):
        pass


def write_hparams(
    log_dir: str | os.PathLike,
    values: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    """Writes a trial for TensorBoard's dashboard HParams.

    Start TensorBoard on the folder of all trials to compare them there.

    Args:
        log_dir: The trial's folder of event files.
        values: Hyperparameters by name. Lists are joined, dicts become JSON,
            and `None` is left out.
        metrics: Results of the trial by name.
    """
    plain = {
        name: _plain(value)
        for name, value in values.items()
        if value is not None
    }
    with tf.summary.create_file_writer(str(log_dir)).as_default(step=0):
        hparams.hparams(plain)
        for name, value in metrics.items():
            tf.summary.scalar(name, value)


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return json.dumps(value)
    return " ".join(map(str, value))


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a run's configuration, with each `--set` argument as an entry."""
    values = {name: config[name] for name in config if name != "set"}
    values.setdefault("method", "alone")
    for argument in config.get("set", []):
        name, _, value = argument.partition("=")
        values[name] = parsed(value)
    return values


def _draws_graphs(model: keras.Model) -> bool:
    return isinstance(model, keras_mhgd.Distiller) and any(
        isinstance(part, keras_mhgd.methods.MHGD) for part in model.methods
    )


def _probe(dataset: keras_mhgd.data.Dataset) -> np.ndarray:
    """Picks test images of some classes, spread evenly over all classes."""
    found = np.unique(dataset.y_test)
    count = min(_CLASSES, len(found))
    chosen = found[np.linspace(0, len(found) - 1, count).round().astype(int)]
    return np.concatenate(
        [np.flatnonzero(dataset.y_test == each)[:_SAMPLES] for each in chosen]
    )
