"""Loads the trained networks that come with the package.

For each of the embedded data sets there are a teacher and a student that was
distilled from it.
"""

import dataclasses
import hashlib
import json
import pathlib

import keras

from keras_mhgd.checks import require_known
from keras_mhgd.storage.networks import read_network

__all__ = ["Preset", "checked_file", "describe", "load", "names"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """Describes a trained network.

    Attributes:
        name: Its name.
        network: Name of its architecture, for `keras_mhgd.models.get`.
        dataset: Name of the data it was trained on, for
            `keras_mhgd.data.load`. Its inputs are those of the data set,
            normalised.
        teacher: Name of the preset that taught it; `None` for a teacher.
        parameters: Number of its parameters.
        accuracy: Fraction of the test samples that it gets right.
        description: What it is, in a sentence.
        command: The program that trained it.
        file: Its `.keras` file.
        sha256: Hash of the file, in hexadecimal digits.
    """

    name: str
    network: str
    dataset: str
    teacher: str | None
    parameters: int
    accuracy: float
    description: str
    command: str
    file: pathlib.Path
    sha256: str


def names() -> list[str]:
    """Lists the names of the trained networks."""
    return list(_presets())


def describe(name: str) -> Preset:
    """Describes a trained network.

    Args:
        name: One of `names()`.

    Returns:
        The description.

    Raises:
        ValueError: If there is no such network.

    Example:
        >>> keras_mhgd.presets.describe("vgg_small_glyphs").accuracy
        0.8484
    """
    presets = _presets()
    require_known("preset", name, presets)
    return presets[name]


def load(name: str) -> keras.Model:
    """Loads a trained network.

    Args:
        name: One of `names()`.

    Returns:
        The network, not compiled. It ends in logits.

    Raises:
        ValueError: If there is no such network, or if its file is not the one
            that the package came with.

    Example:
        >>> teacher = keras_mhgd.presets.load("vgg_small_glyphs")
        >>> teacher.count_params()
        178996
    """
    return read_network(checked_file(name))


def checked_file(name: str) -> pathlib.Path:
    """Gives the file of a trained network, if it is unchanged.

    Args:
        name: One of `names()`.

    Returns:
        The path of the `.keras` file.

    Raises:
        ValueError: If there is no such network, or if its file is not the one
            that the package came with.
    """
    preset = describe(name)
    found = hashlib.sha256(preset.file.read_bytes()).hexdigest()
    if found != preset.sha256:
        raise ValueError(
            f"{preset.file} must have the SHA-256 {preset.sha256}. Received: "
            f"{found}. The file was changed or is damaged: install the package "
            "again."
        )
    return preset.file


def _presets() -> dict[str, Preset]:
    folder = _folder()
    described = json.loads((folder / "presets.json").read_text("utf-8"))
    return {
        name: Preset(**{"name": name, **each, "file": folder / each["file"]})
        for name, each in described.items()
    }


def _folder() -> pathlib.Path:
    """Gives the folder of the files; in a checkout it is beside the package."""
    package = pathlib.Path(__file__).parent
    installed = package / "saved_models"
    return installed if installed.exists() else package.parent / "saved_models"
