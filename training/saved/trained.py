"""Trained networks, found and loaded."""

import os
import pathlib

import keras

from keras_mhgd.storage.networks import read_network


def load_network(path: str | os.PathLike) -> keras.Model:
    """Loads a trained network: a `.keras` file or a finished run's last one.

    Args:
        path: A `.keras` file or a run folder.

    Returns:
        The network.

    Raises:
        FileNotFoundError: If there is no such file, or no finished run.
        OSError: If the file can't be read.
        ValueError: If it is damaged, no Keras model, or asks for code to run.
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
    """Finds the network that a path names: of a run folder, its last one."""
    path = pathlib.Path(path)
    return path / "last.keras" if (path / "config.json").exists() else path
