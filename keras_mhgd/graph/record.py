"""Records the graphs of a fixed batch over a training, for pictures."""

import dataclasses
import io
import os
import pathlib

import numpy as np

from keras_mhgd.storage.arrays import read_arrays
from keras_mhgd.storage.files import write_atomically


@dataclasses.dataclass(eq=False)
class GraphRecord:
    """Holds the graphs of a probe batch over a training.

    Rows and columns of a graph are the batch's samples, sorted by class. An
    entry says how much a row's back-end vector attends to a column's
    front-end vector; `1 / batch` is indifference.

    Args:
        edges: Name of each edge.
        classes: Class name of each sample, sorted.
        images: Images of the samples, uint8
            `(batch, height, width, 1 or 3)`. Empty if the samples are no
            images.
        teacher: The teacher's graphs `(edges, num_heads, batch, batch)`.
        before: The student's graphs before training.
        student: The student's graphs at the last recorded time.
        epochs: Finished epochs at each recorded time, rising, `(times,)`.
        differences: Mean `|student - teacher|` over an edge's entries, in
            units of `1 / batch`, `(times, edges)`.
        divergences: Mean over heads and rows of `sum_j S (log S - log T)`,
            `(times, edges)`.
    """

    edges: np.ndarray
    classes: np.ndarray
    images: np.ndarray
    teacher: np.ndarray
    before: np.ndarray
    student: np.ndarray
    epochs: np.ndarray
    differences: np.ndarray
    divergences: np.ndarray

    @property
    def bounds(self) -> list[int]:
        """Positions where the samples' class changes."""
        return [*np.flatnonzero(self.classes[1:] != self.classes[:-1]) + 1]

    def relative(self, part: str, edge: int) -> np.ndarray:
        """Computes the mean graph over heads, in units of indifference.

        Args:
            part: `"teacher"`, `"before"` or `"student"`.
            edge: Position of the edge.

        Returns:
            `(batch, batch)`, 1 where a row is indifferent.
        """
        mean = getattr(self, part)[edge].astype(np.float32).mean(axis=0)
        return mean * len(mean)

    def attended(self, part: str, edge: int, row: int, count: int) -> list[int]:
        """Lists the samples that a row attends to most, over all heads.

        Args:
            part: `"teacher"`, `"before"` or `"student"`.
            edge: Position of the edge.
            row: Position of the sample whose row is read.
            count: How many samples to list, at most.

        Returns:
            Positions of samples, the most attended one first.
        """
        return [*self.relative(part, edge)[row].argsort()[::-1][:count]]

    def samples(self, count: int) -> list[int]:
        """Picks samples of different classes, spread over the batch.

        Args:
            count: How many samples to pick, at most; >= 1.

        Returns:
            Positions of samples, rising. Each is the first one of its class.
        """
        first = [0, *self.bounds]
        return first[:: max(1, len(first) // count)][:count]

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz` file, either completely or not at all.

        Args:
            path: The file to write or replace. Its folder must exist.

        Raises:
            OSError: If the file can't be written.
        """
        content = io.BytesIO()
        np.savez_compressed(content, **vars(self))
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "GraphRecord | None":
        """Reads a file of `save`.

        Args:
            path: The file.

        Returns:
            The record, or `None` if the file does not exist.

        Raises:
            OSError: If the file can't be read.
            ValueError: If the file is damaged.
        """
        path = pathlib.Path(path)
        if not path.exists():
            return None
        try:
            return cls(**read_arrays(path))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} must hold recorded graphs. Received: {error}. Delete "
                "the file."
            ) from error
