"""Tells at the start of a training what will be done, and on what."""

import math
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

import keras_mhgd

_GAINS_MORE = (
    "It gains more with three times the --epochs, and with samples that have "
    "no labels (--unlabeled): see docs/evidence.md."
)
# Standard deviations of guessed accuracies; a teacher within these may guess.
_DEVIATIONS = 3


def of_training(
    network: keras.Model,
    dataset: keras_mhgd.data.Dataset,
    config: Mapping[str, Any],
    directory: str | os.PathLike,
) -> str:
    """Tells what is trained on what, and where the result will be.

    Args:
        network: The network.
        dataset: The data.
        config: The run's configuration.
        directory: The run folder.

    Returns:
        A line for each fact, and a warning of samples without labels.
    """
    lines = [
        f"Network: {network.name}, {network.count_params():,} parameters",
        _places(dataset, config, directory),
    ]
    if dataset.unlabeled:
        lines.append(
            _teaching_nothing(dataset, "there is no teacher. Use distill")
        )
    return "\n".join(lines)


def of_distillation(
    distiller: keras_mhgd.Distiller,
    teacher: Mapping[str, Any],
    dataset: keras_mhgd.data.Dataset,
    config: Mapping[str, Any],
    directory: str | os.PathLike,
) -> str:
    """Tells who teaches whom, how, on what, and where the result will be.

    Args:
        distiller: The distiller.
        teacher: What `measure_teacher` found.
        dataset: The data.
        config: The run's configuration.
        directory: The run folder.

    Returns:
        A line for each fact, and warnings of a teacher that only guesses and
        of samples that teach nothing.
    """
    accuracy = f"{100 * teacher['accuracy']:.2f} %"
    parameters = distiller.student.count_params()
    method = " + ".join(map(keras_mhgd.methods.name_of, distiller.methods))
    if config["method"] == "recommended":
        method = f"recommended: {method}"
    lines = [
        f"Teacher: {teacher['name']} from {config['teacher']}, {accuracy} of "
        f"the {_tested(dataset, config)}",
        f"Student: {distiller.student.name}, {parameters:,} parameters, "
        f"{100 * parameters / teacher['parameters']:.0f} % of the teacher's "
        f"{teacher['parameters']:,}",
        f"Method: {', '.join([method, *config['set']])}",
    ]
    if distiller.sensing_points:
        points = ", ".join(map(" <- ".join, distiller.sensing_points))
        lines.append(f"Sensing points, student <- teacher: {points}")
    lines.append(_places(dataset, config, directory))
    if config["method"] == "recommended" and not config["unlabeled"]:
        lines.append(_GAINS_MORE)
    needy = [each for each in distiller.methods if each.needs.labels]
    if dataset.unlabeled and len(needy) == len(distiller.methods):
        names = " and ".join(map(keras_mhgd.methods.name_of, needy))
        lines.append(
            _teaching_nothing(
                dataset,
                f"{names} must know the label. Add a method that needs none, "
                "such as soft_logits",
            )
        )
    if _may_guess(teacher["accuracy"], dataset.y_test):
        lines.append(
            f"Warning: the teacher's {accuracy} may be mere guessing. Was it "
            "trained at all? Was it trained on samples that were prepared "
            "in another way, or with classes in another order? Here, images "
            "are centred and scaled by the set's mean and deviation, and the "
            "classes are in the data set's order. A teacher of pixels from 0 "
            "to 255 needs a first layer: see docs/data.md."
        )
    return "\n".join(lines)


def _teaching_nothing(dataset, reason: str) -> str:
    return (
        f"Warning: the {dataset.unlabeled:,} {dataset.kind} without labels "
        f"teach nothing here: {reason}, or leave out --unlabeled."
    )


def _places(dataset, config, directory) -> str:
    return (
        f"Data: {len(dataset.x_train):,} training {dataset.kind} of "
        f"{dataset.name}, tested on {_tested(dataset, config)}\n"
        f"Written to: {directory}"
    )


def _tested(dataset, config) -> str:
    part = "held-out training" if config["validation_split"] else "test"
    return f"{len(dataset.x_test):,} {part} {dataset.kind}"


def _may_guess(accuracy: float, labels: np.ndarray) -> bool:
    """Checks whether guessing the largest class might reach an accuracy."""
    chance = np.bincount(labels).max() / len(labels)
    deviation = math.sqrt(chance * (1 - chance) / len(labels))
    return accuracy <= chance + _DEVIATIONS * deviation
