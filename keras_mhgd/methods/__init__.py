"""The methods of distillation, by name."""

from typing import Any

import keras

from keras_mhgd.choices import unknown
from keras_mhgd.methods.method import Method
from keras_mhgd.methods.mhgd import MHGD, graph_divergence

__all__ = ["MHGD", "Method", "get", "graph_divergence", "names"]

_METHODS = {"mhgd": MHGD}


def names() -> list[str]:
    """Lists the names of all methods."""
    return list(_METHODS)


def get(identifier: str | Method | dict[str, Any]) -> Method:
    """Makes a method from its name or configuration.

    Args:
        identifier: One of `names()`, a `Method`, or a serialized one.

    Returns:
        The method; with the defaults of its class if a name was given.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If it is no name, method or configuration.
    """
    if isinstance(identifier, Method):
        return identifier
    if isinstance(identifier, dict):
        return get(keras.saving.deserialize_keras_object(identifier))
    if not isinstance(identifier, str):
        raise TypeError(
            "`method` must be a name, a keras_mhgd.methods.Method or its "
            f"configuration. Received: {identifier!r} of type "
            f"{type(identifier).__name__}. Names: {', '.join(names())}."
        )
    if identifier not in _METHODS:
        raise unknown("method", identifier, names())
    return _METHODS[identifier]()
