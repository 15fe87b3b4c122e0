"""Stores networks that methods learn from a teacher alone, for other runs."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from keras_mhgd import methods
from keras_mhgd.storage.files import locked, require_writable
from keras_mhgd.storage.networks import read_network, save_network


class Preparations:
    """Stores networks that methods learn from a teacher alone, in a folder.

    The networks of a method are in a subfolder. Its name is a hash of all that
    the networks depend on: the arguments of the method's preparation,
    `Preparation.depends_on`, the shapes of the weights, and `learnt_on`.

    Args:
        directory: The folder; made if missing.
        learnt_on: What the networks depend on besides their method, such as the
            teacher, the data and the sensing points; plain JSON values.

    Raises:
        OSError: If the folder can't be written.

    Example:
        >>> distiller = keras_mhgd.Distiller(student, teacher, "mhgd")
        >>> preparations = keras_mhgd.Preparations(
        ...     "preparations", {"teacher": "vgg_small", "data": "glyphs"}
        ... )
        >>> with preparations.locked():  # others wait for what this one makes
        ...     preparations.restore(distiller.methods)
        ...     if not distiller.prepared:
        ...         pass  # distiller.prepare(images, labels)
        ...     preparations.keep(distiller.methods)
    """

    def __init__(self, directory: str | os.PathLike, learnt_on: dict[str, Any]):
        self._directory = require_writable(directory)
        self._learnt_on = learnt_on

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Lets one process at a time look for networks and make them."""
        return locked(self._directory, wait=True)

    def restore(self, built: Iterable[methods.Method]) -> None:
        """Copies stored networks into built methods, if there are any.

        Methods that are already prepared are not changed.

        Args:
            built: Methods of a distiller, as in `Distiller.methods`.

        Raises:
            OSError: If a file can't be read.
            ValueError: If a file is damaged.
        """
        for method in built:
            files = self._files(method)
            if not files or method.preparation.done:
                continue
            if all(path.exists() for path in files.values()):
                method.preparation.adopt(
                    {name: read_network(files[name]) for name in files}
                )

    def keep(self, built: Iterable[methods.Method]) -> None:
        """Saves the networks that methods have learnt, if not saved yet.

        A method that is not prepared has learnt nothing and is skipped.

        Args:
            built: Methods of a distiller, as in `Distiller.methods`.

        Raises:
            OSError: If a file can't be written.
        """
        for method in built:
            if method.preparation and not method.preparation.done:
                continue
            for name, path in self._files(method).items():
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_network(method.preparation.networks[name], path)

    def _files(self, method: methods.Method) -> dict[str, pathlib.Path]:
        preparation = method.preparation
        if not preparation or not preparation.networks:
            return {}
        networks = preparation.networks
        arguments = [
            *preparation.get_config().values(),
            *preparation.depends_on.values(),
        ]
        shapes = {
            name: [tuple(weight.shape) for weight in network.weights]
            for name, network in networks.items()
        }
        text = json.dumps([arguments, shapes, self._learnt_on], sort_keys=True)
        number = hashlib.sha256(text.encode()).hexdigest()[:8]
        return {
            name: self._directory / f"{name}-{number}.keras"
            for name in networks
        }
