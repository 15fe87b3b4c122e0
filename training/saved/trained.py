"""Finds and loads trained networks."""

import os
import pathlib

import keras

from keras_mhgd import presets
from keras_mhgd.checks import hint
from keras_mhgd.storage.networks import read_network


def load_network(path: str | os.PathLike) -> keras.Model:
    """Loads a trained network from a file, a finished run or the package.

    Args:
        path: A `.keras` file, a run folder, or one of
            `keras_mhgd.presets.names()`.

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
            "A network must be a .keras file, a finished run folder, or one "
            f"of {', '.join(presets.names())}. Received: {path}, which is not "
            f"there.{hint(path, presets.names())} Correct the path, or train "
            "the network first."
        )
    network = read_network(path)
    return getattr(network, "student", network)


def network_file(path: str | os.PathLike) -> pathlib.Path:
    """Gives the path of a network's file.

    This is `last.keras` in a run folder. A preset's name stands for its file,
    unless there is a file or folder of that name here.
    """
    if str(path) in presets.names() and not pathlib.Path(path).exists():
        return presets.checked_file(str(path))
    path = pathlib.Path(path)
    return path / "last.keras" if (path / "config.json").exists() else path
