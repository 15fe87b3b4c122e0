"""Collects what a page shows of classes that networks confuse."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import keras_mhgd

_PAIRS, _IMAGES = 8, 6


def confusions(
    dataset: keras_mhgd.data.Dataset, predicted: np.ndarray
) -> np.ndarray:
    """Counts test images by true and predicted class.

    Args:
        dataset: The data.
        predicted: Classes of the test images, `(count,)`.

    Returns:
        Integers `(num_classes, num_classes)`, true classes in rows.
    """
    size = dataset.num_classes
    counts = np.bincount(dataset.y_test * size + predicted, minlength=size**2)
    return counts.reshape(size, size)


def of_run(
    dataset: keras_mhgd.data.Dataset, predicted: np.ndarray
) -> list[dict[str, Any]]:
    """Finds the pairs of classes that a network confuses most.

    Returns:
        Values for the template `confusions.html.j2`.
    """
    counts = _errors(dataset, [predicted])
    totals = np.bincount(dataset.y_test, minlength=dataset.num_classes)

    def shown(true, found):
        images = np.flatnonzero((dataset.y_test == true) & (predicted == found))
        text = f"{counts[true, found]:.0f} of {totals[true]} {dataset.kind}"
        return {"images": _images(dataset, images), "text": text, "bars": []}

    return _pairs(dataset, counts, shown)


def of_comparison(
    dataset: keras_mhgd.data.Dataset,
    alone: Sequence[np.ndarray],
    way: Sequence[np.ndarray],
    name: str,
) -> dict[str, Any]:
    """Finds the confusions that a way fixed or added to the student alone.

    Args:
        dataset: The data.
        alone: Predictions of the student alone, an array for each trial.
        way: Predictions of the way for the same trials.
        name: Name of the way.

    Returns:
        A dict. `fixed` and `added` list the pairs of (true, predicted) class
        whose errors fell most and rose most, in the mean of the trials.
        `before` and `after` count all errors; `name` and `trials` say whose.
    """
    before, after = _errors(dataset, alone), _errors(dataset, way)
    highest = max(before.max(), after.max(), 1)

    def shown(true, found):
        wrong = np.mean([each == found for each in alone], axis=0)
        right = np.mean([each == true for each in way], axis=0)
        fixed = (dataset.y_test == true) * wrong * right
        images = np.argsort(-fixed, kind="stable")
        images = images[fixed[images] > 0]
        bars = [
            (kind, counts[true, found], counts[true, found] / highest)
            for kind, counts in (("before", before), ("after", after))
        ]
        return {"images": _images(dataset, images), "text": "", "bars": bars}

    return {
        "name": name,
        "trials": len(alone),
        "before": before.sum(),
        "after": after.sum(),
        "fixed": _pairs(dataset, before - after, shown),
        "added": _pairs(dataset, after - before, shown, _PAIRS // 2),
    }


def _errors(dataset, predictions) -> np.ndarray:
    """Counts confusions, in the mean of several predictions."""
    counts = np.mean(
        [confusions(dataset, predicted) for predicted in predictions], axis=0
    )
    np.fill_diagonal(counts, 0)
    return counts


def _pairs(
    dataset: keras_mhgd.data.Dataset,
    order: np.ndarray,
    shown: Callable[[int, int], dict[str, Any]],
    count: int = _PAIRS,
) -> list[dict[str, Any]]:
    """Lists the pairs of classes with the highest positive entries."""
    highest = np.argsort(-order, axis=None, kind="stable")[:count]
    return [
        {
            "true": dataset.classes[true],
            "predicted": dataset.classes[found],
            **shown(true, found),
        }
        for true, found in zip(
            *np.unravel_index(highest, order.shape), strict=True
        )
        if order[true, found] > 0
    ]


def _images(dataset, numbers) -> dict[int, np.ndarray]:
    if len(dataset.input_shape) < 3 or dataset.input_shape[2] not in (1, 3):
        return {}
    return {int(number): dataset.x_test[number] for number in numbers[:_IMAGES]}
