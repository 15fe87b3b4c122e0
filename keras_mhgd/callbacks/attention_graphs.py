"""Writes pictures of the attention graphs for TensorBoard."""

import gc
import os
import pathlib

import keras
import numpy as np
import tensorflow as tf

from keras_mhgd.checks import require_one_or_more
from keras_mhgd.distiller import Distiller
from keras_mhgd.graph import drawing
from keras_mhgd.graph.record import GraphRecord
from keras_mhgd.methods import MHGD


class AttentionGraphs(keras.callbacks.Callback):
    """Shows in TensorBoard how the student learns the teacher's graphs.

    Both networks run on a fixed batch in test mode, before training and after
    epochs. The callback writes pictures of MHGD's graphs: teacher, student and
    difference for each edge and head. It also writes the images that some
    samples attend to most, and two scalars for each edge. The scalars are the
    mean absolute difference, in units of indifference (`1 / batch`), and the
    divergence that MHGD trains on (mean over heads and rows). The callback
    does not change the training.

    Args:
        log_dir: Folder of the event files.
        images: Inputs of the networks, `(batch, ...)`, of two classes or more.
            8 samples of each of 8 classes are enough for clear pictures.
        labels: Class numbers `(batch,)`. The samples are sorted by class.
        classes: Name of each class. `None` uses the class numbers.
        freq: Epochs from one recording to the next, >= 1. The last epoch is
            always recorded.
        file: An `.npz` file that keeps the graphs and their distance over the
            epochs, for a report and for a resumed training: see
            `keras_mhgd.graph.GraphRecord`. `None` writes no file.

    Raises:
        ValueError: If an argument is out of range, or if the trained model
            is no `Distiller` with the method MHGD and a single teacher.

    Example:
        >>> distiller = keras_mhgd.Distiller(
        ...     student,
        ...     teacher,
        ...     keras_mhgd.methods.MHGD(num_heads=2, preparation_epochs=1),
        ... )
        >>> distiller.compile(
        ...     "sgd",
        ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ... )
        >>> graphs = keras_mhgd.callbacks.AttentionGraphs(
        ...     "logs", images[:16], labels[:16]
        ... )
        >>> history = distiller.fit(
        ...     images, labels, verbose=0, callbacks=[graphs]
        ... )
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        images: np.ndarray,
        labels: np.ndarray,
        classes: tuple[str, ...] | None = None,
        freq: int = 1,
        file: str | os.PathLike | None = None,
    ):
        super().__init__()
        images, labels = np.asarray(images), np.asarray(labels)
        require_one_or_more(freq=freq)
        if labels.shape != images.shape[:1] or len(np.unique(labels)) < 2:
            raise ValueError(
                "`labels` must give the class of each image, of two classes "
                f"or more. Received: labels of shape {labels.shape} with "
                f"{len(np.unique(labels))} classes, images of shape "
                f"{images.shape}."
            )
        order = np.argsort(labels, kind="stable")
        self.log_dir = pathlib.Path(log_dir)
        self.images = images[order]
        self.classes = np.array(
            [
                str(label if classes is None else classes[label])
                for label in labels[order]
            ]
        )
        self.freq = freq
        self.file = file
        self._record = None

    def on_train_begin(self, logs=None):
        watched = isinstance(self.model, Distiller)
        parts = self.model.methods if watched else []
        found = [each for each in parts if isinstance(each, MHGD)]
        if not found:
            names = [type(each).__name__ for each in parts]
            raise ValueError(
                "AttentionGraphs must watch a Distiller whose method is, or "
                f"has among several, MHGD. Received: {self.model.name!r} with "
                f"methods {names}. Leave the callback out."
            )
        if len(self.model.teachers) > 1:
            raise ValueError(
                "AttentionGraphs must watch a Distiller with one teacher. "
                f"Received: {len(self.model.teachers)} teachers. Leave the "
                "callback out."
            )
        self._method = found[0]
        self._writer = tf.summary.create_file_writer(str(self.log_dir))
        steps = keras.ops.convert_to_numpy(self.model.optimizer.iterations)
        if steps == 0:
            self._record = None
            self._look(0)
        elif self.file:
            self._record = GraphRecord.load(self.file)

    def on_epoch_end(self, epoch, logs=None):
        epochs = epoch + 1
        if epochs % self.freq == 0 or epochs == self.params["epochs"]:
            self._look(epochs)

    def on_train_end(self, logs=None):
        self._writer.close()

    def _look(self, epochs: int) -> None:
        self._add(epochs)
        record = self._record
        if self.file:
            record.save(self.file)
        with self._writer.as_default(epochs):
            for edge, name in enumerate(record.edges):
                for kind in ("difference", "divergence"):
                    value = getattr(record, f"{kind}s")[-1, edge]
                    tf.summary.scalar(f"attention_{kind}/{name}", value)
                _picture(f"heads/{name}", drawing.draw_heads(record, edge))
            _picture("attention", drawing.draw_edges(record))
            if record.images.size:
                last = len(record.edges) - 1
                samples = record.samples(4)
                _picture(
                    "attended images",
                    drawing.draw_attended(record, last, samples),
                )
        self._writer.flush()
        gc.collect()  # figures and their pictures are in reference cycles

    def _add(self, epochs: int) -> None:
        """Adds the networks' current graphs to the record."""
        x = tf.convert_to_tensor(self.images)
        student, teacher = (
            np.stack(graphs)
            for graphs in self._method.graphs(*self.model.features(x))
        )
        record = self._record
        if record is None:
            count = len(student)
            record = self._record = GraphRecord(
                edges=np.array(_edges(self.model)),
                classes=self.classes,
                images=_shown(self.images),
                teacher=teacher.astype(np.float16),
                before=student.astype(np.float16),
                student=student.astype(np.float16),
                epochs=np.zeros(0, np.int64),
                differences=np.zeros((0, count)),
                divergences=np.zeros((0, count)),
            )
        record.student = student.astype(np.float16)
        # Entries may be zero if no tanh bounds the logits.
        logs = [np.log(np.maximum(each, 1e-30)) for each in (student, teacher)]
        difference, divergence = (
            each.mean(axis=(1, 2, 3)) * each.shape[-1]
            for each in (
                np.abs(student - teacher),
                student * np.subtract(*logs),
            )
        )
        # A killed training may have recorded epochs after the checkpoint that
        # it resumes from. They are recorded again.
        earlier = record.epochs < epochs
        for name, value in (
            ("epochs", epochs),
            ("differences", difference),
            ("divergences", divergence),
        ):
            kept = getattr(record, name)[earlier]
            setattr(record, name, np.concatenate([kept, [value]]))


def _edges(distiller: Distiller) -> list[str]:
    points = [point for _, point in distiller.sensing_points]
    return [f"{a} → {b}" for a, b in zip(points[:-1], points[1:], strict=True)]


def _shown(images: np.ndarray) -> np.ndarray:
    """Scales images to 0..255; empty if the samples are no images."""
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        return np.zeros(0, np.uint8)
    low, high = images.min(), images.max()
    return (255 * (images - low) / max(high - low, 1e-12)).astype(np.uint8)


def _picture(name: str, picture: np.ndarray) -> None:
    tf.summary.image(name, picture[np.newaxis])
