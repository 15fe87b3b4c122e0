"""Writes networks as `.keras` files, and reads them from untrusted files."""

import os
import pathlib

import keras

from keras_mhgd.storage.files import replacing


def read_network(path: str | os.PathLike) -> keras.Model:
    """Reads a `.keras` file in Keras's safe mode, which runs no code of it.

    The file determines how large the network is. No size is refused, even if
    the network doesn't fit into memory.

    Args:
        path: The file.

    Returns:
        The network, not compiled.

    Raises:
        OSError: If the file can't be read.
        ValueError: If it is damaged, holds no network, or asks for code to
            run.
    """
    path = pathlib.Path(path)
    # If the file can't be read, this raises OSError. Below, an OSError means
    # that the file is damaged.
    with path.open("rb"):
        pass
    try:
        if path.suffix != ".keras":
            raise ValueError("its name must end in .keras")
        network = keras.saving.load_model(path, compile=False, safe_mode=True)
        if not isinstance(network, keras.Model):
            raise TypeError(f"it holds a {type(network).__name__}")
        return network
    # The file names the classes to make and their arguments, so any exception
    # may be raised.
    except Exception as error:
        raise ValueError(
            f"{path} must be a Keras model in the .keras format. "
            f"Received: a file that can't be loaded ({error}). Save the model "
            "anew by its method `save`. It must have no layers of code, such "
            "as Lambda."
        ) from error


def save_network(network: keras.Model, path: str | os.PathLike) -> None:
    """Saves a network as a `.keras` file: whole, or not at all.

    Args:
        network: Any Keras model.
        path: The file to write or replace.

    Raises:
        OSError: If it can't be written. An older file is not changed.
    """
    with replacing(path) as temporary:
        network.save(temporary)
