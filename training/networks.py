"""Trained networks, found and loaded."""

import os
import pathlib
import zipfile

import keras


def load_network(path: str | os.PathLike) -> keras.Model:
    """Loads a trained network: a `.keras` file or a finished run's last one.

    Args:
        path: A `.keras` file or a run folder.

    Returns:
        The network.

    Raises:
        FileNotFoundError: If there is no such file, or no finished run.
        ValueError: If the file is damaged or no Keras model.
    """
    path = network_file(path)
    if not path.exists():
        raise FileNotFoundError(
            "A network must be a .keras file or a finished run folder. "
            f"There is no {path}."
        )
    try:
        network = keras.saving.load_model(path, compile=False)
    except (OSError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} must be a Keras model in the .keras format. "
            f"It can't be loaded: {error}"
        ) from error
    return getattr(network, "student", network)


def network_file(path: str | os.PathLike) -> pathlib.Path:
    """Finds the network that a path names: of a run folder, its last one."""
    path = pathlib.Path(path)
    return path / "last.keras" if (path / "config.json").exists() else path
