"""A page's part on classes that networks take for each other."""

import html
from collections.abc import Callable, Sequence

import numpy as np

import keras_mhgd
from training import charts

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


def of_run(dataset: keras_mhgd.data.Dataset, predicted: np.ndarray) -> str:
    """Shows the pairs of classes that a network confuses most."""
    counts = _errors(dataset, [predicted])
    totals = np.bincount(dataset.y_test, minlength=dataset.num_classes)

    def pair(true, found):
        images = np.flatnonzero((dataset.y_test == true) & (predicted == found))
        number = f"{counts[true, found]:.0f} of {totals[true]} images"
        return _thumbs(dataset, images), f'<div class="faint">{number}</div>'

    return _pairs(dataset, counts, pair)


def of_comparison(
    dataset: keras_mhgd.data.Dataset,
    alone: Sequence[np.ndarray],
    way: Sequence[np.ndarray],
    name: str,
) -> str:
    """Shows which confusions of the student alone a way fixed, and which not.

    Args:
        dataset: The data.
        alone: Predictions of the student alone, of each trial.
        way: Those of a way, of the same trials.
        name: Of the way.

    Returns:
        HTML: the pairs of (true, predicted) class with most errors less, and
        those with most errors more, in the mean of the trials.
    """
    before, after = _errors(dataset, alone), _errors(dataset, way)
    highest = max(before.max(), after.max(), 1)

    def pair(true, found):
        wrong = np.mean([each == found for each in alone], axis=0)
        right = np.mean([each == true for each in way], axis=0)
        fixed = (dataset.y_test == true) * wrong * right
        images = np.argsort(-fixed, kind="stable")
        images = images[fixed[images] > 0]
        bars = "".join(
            f'<div class="bar" style="--c: var(--{colour})">'
            f'<i style="width:{100 * counts[true, found] / highest:.1f}%"></i>'
            f"{counts[true, found]:.1f}</div>"
            for counts, colour in ((before, "c6"), (after, "c1"))
        )
        return _thumbs(dataset, images), bars

    errors = (each.sum() for each in (before, after))
    text = "of {:.0f} errors, {:.0f} are left".format(*errors)
    return (
        f"<p>Student alone (grey) and {html.escape(name)} (blue): errors in "
        f"the mean of {len(alone)} trial{'s' * (len(alone) > 1)}; {text}. "
        "Images: misread alone, read rightly after distillation.</p>"
        "<h3>Most fixed</h3>"
        + _pairs(dataset, before - after, pair)
        + "<h3>Most added</h3>"
        + _pairs(dataset, after - before, pair, _PAIRS // 2)
    )


def _errors(dataset, predictions) -> np.ndarray:
    """Counts of confusions in the mean of several predictions."""
    counts = np.mean(
        [confusions(dataset, predicted) for predicted in predictions], axis=0
    )
    np.fill_diagonal(counts, 0)
    return counts


def _pairs(
    dataset: keras_mhgd.data.Dataset,
    order: np.ndarray,
    pair: Callable[[int, int], tuple[str, str]],
    count: int = _PAIRS,
) -> str:
    """Shows the pairs with the highest entries, if these are positive."""
    highest = np.argsort(-order, axis=None, kind="stable")[:count]
    made = []
    for true, found in zip(
        *np.unravel_index(highest, order.shape), strict=True
    ):
        if order[true, found] > 0:
            names = (html.escape(dataset.classes[c]) for c in (true, found))
            thumbs, text = pair(true, found)
            made.append(
                f'<div class="pair"><b>{" → ".join(names)}</b>'
                f"<div>{text}{thumbs}</div></div>"
            )
    return f'<div class="two">{"".join(made)}</div>' if made else "<p>None.</p>"


def _thumbs(dataset, images) -> str:
    shown = "".join(
        charts.picture(
            dataset.x_test[image],
            f"test image {image}, {dataset.classes[dataset.y_test[image]]}",
            "thumb",
        )
        for image in images[:_IMAGES]
        if dataset.x_test.shape[-1] in (1, 3)
    )
    return f'<div class="thumbs">{shown}</div>'
