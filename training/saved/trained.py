"""Finds and loads trained networks."""

import os
import pathlib

import keras

from keras_mhgd.storage.networks import read_network

# The folder that holds `training`: the checkout, or the installed package.
_ROOT = pathlib.Path(__file__).parents[2]
_SHIPPED = pathlib.Path("saved_models/teachers")


def load_network(path: str | os.PathLike) -> keras.Model:
    """Loads a trained network from a `.keras` file or a finished run.

    Args:
        path: A `.keras` file or a run folder. The teachers that the package
            ships are found from any folder, as in
            `saved_models/teachers/vgg_small_glyphs.keras`.

    Returns:
        The network. From a saved distiller, it is the student.

    Raises:
        FileNotFoundError: If there is no such file or no finished run.
        OSError: If the file can't be read.
        ValueError: If the file is damaged, is no Keras model, or asks to run
            code.
    """
    path = network_file(path)
    if not path.exists():
        raise FileNotFoundError(
            "A network must be a .keras file or a finished run folder. "
            f"There is no {path}."
        )
    network = read_network(path)
    return getattr(network, "student", network)


def network_file(path: str | os.PathLike) -> pathlib.Path:
    """Gives the path of a network's file.

    This is `last.keras` in a run folder, and the shipped file if `path` names a
    teacher that the package ships and there is no such file here.
    """
    path = pathlib.Path(path)
    if (path / "config.json").exists():
        return path / "last.keras"
    shipped = _ROOT / path
    if path.parent == _SHIPPED and not path.exists() and shipped.exists():
        return shipped
    return path
