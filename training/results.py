"""Figures of results, in words and tables."""

import statistics

import keras_mhgd


def measure(
    predict: keras_mhgd.export.Predictor, dataset: keras_mhgd.data.Dataset
) -> float:
    """Computes the fraction of test images that a network gets right.

    Raises:
        ValueError: If its outputs are not one for each class.
    """
    outputs = predict(dataset.normalise(dataset.x_test))
    if outputs.shape[1:] != (dataset.num_classes,):
        raise ValueError(
            f"The network must have one output for each of the "
            f"{dataset.num_classes} classes of {dataset.name}. "
            f"Received: outputs of shape {outputs.shape[1:]}."
        )
    return float((outputs.argmax(axis=-1) == dataset.y_test).mean())


def describe(
    files: list[keras_mhgd.export.ExportedModel], num_images: int
) -> str:
    """Makes a line for each exported file."""
    return "\n".join(
        f"{file.path}: {file.size / 1000:.0f} kB, agrees with the Keras model "
        f"on {file.agreement:.2%} of {num_images} test images (largest "
        f"difference {file.max_difference:.1e}), {file.latency:.2f} ms an "
        "image"
        for file in files
    )


def summary(teacher: float, alone: list[float], mhgd: list[float]) -> str:
    """Makes the table of accuracies, in percent, of the last epoch.

    Args:
        teacher: Test accuracy of the teacher, fraction.
        alone: Of the student alone, one for each seed.
        mhgd: Of the student with MHGD, one for each seed.

    Returns:
        Markdown.
    """
    gains = [100 * (b - a) for a, b in zip(alone, mhgd, strict=True)]
    gap = 100 * (teacher - statistics.mean(alone))
    seeds = range(len(alone))
    rows = [
        ["", *(f"seed {seed}" for seed in seeds), "mean ± deviation"],
        ["---"] * (len(alone) + 2),
        _row("student alone", [100 * value for value in alone], ".2f"),
        _row("student with MHGD", [100 * value for value in mhgd], ".2f"),
        _row("difference", gains, "+.2f"),
    ]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"{lines}\n\nTest accuracy in %, last epoch. Teacher: "
        f"{100 * teacher:.2f}. Gap closed: "
        f"{statistics.mean(gains) / gap:.0%}.\n"
    )


def _row(name: str, values: list[float], form: str) -> list[str]:
    mean = format(statistics.mean(values), form)
    if len(values) > 1:
        mean += f" ± {statistics.stdev(values):.2f}"
    return [name, *(format(value, form) for value in values), mean]
