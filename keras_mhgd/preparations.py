"""Networks that methods learn from a teacher alone, shared through a folder."""

import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any

from keras_mhgd import methods
from keras_mhgd.files import locked, require_writable
from keras_mhgd.networks import read_network, save_network


class Preparations:
    """A folder of networks that were learnt from one teacher.

    They belong to the arguments of a method that they depend on
    (`PreparedMethod.preparation_arguments`), to the shapes of their weights,
    which hang on the sensing points, and to the data and teacher that they were
    learnt on: anything else looks for a folder of another name.

    Args:
        directory: Where the folders are; made if missing.
        learnt_on: What the networks depend on beside their method, plain JSON
            values.

    Raises:
        OSError: If the folder can't be written.

    Example:
        >>> distiller = keras_mhgd.Distiller(student, teacher, "mhgd")
        >>> preparations = keras_mhgd.Preparations(
        ...     "preparations", {"teacher": "vgg_small", "data": "glyphs"}
        ... )
        >>> with preparations.locked():  # others wait for what this one makes
        ...     preparations.restore(distiller.method)
        ...     if not distiller.method.prepared:
        ...         pass  # distiller.prepare(images, labels)
        ...     preparations.keep(distiller.method)
    """

    def __init__(self, directory: str | os.PathLike, learnt_on: dict[str, Any]):
        self._directory = require_writable(directory)
        self._learnt_on = learnt_on

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Lets one process at a time look for networks and make them."""
        return locked(self._directory, wait=True)

    def restore(self, method: methods.Method) -> None:
        """Takes over the networks that are there, into a built method.

        What is prepared stays as it is.

        Raises:
            OSError: If a file can't be read.
            ValueError: If a file is damaged.
        """
        for part in method.parts():
            if part.prepared:
                continue
            files = self._files(part)
            if files and all(path.exists() for path in files.values()):
                part.adopt({name: read_network(files[name]) for name in files})

    def keep(self, method: methods.Method) -> None:
        """Saves the networks that a method has learnt, if not there yet.

        What is not prepared has learnt nothing, and is left out.
        """
        for part in method.parts():
            if not part.prepared:
                continue
            for name, path in self._files(part).items():
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_network(part.artifacts()[name], path)

    def _files(self, part: methods.Method) -> dict[str, pathlib.Path]:
        networks = part.artifacts()
        if not networks:
            return {}
        config = part.get_config()
        arguments = [config[name] for name in part.preparation_arguments]
        shapes = {
            name: [tuple(weight.shape) for weight in network.weights]
            for name, network in networks.items()
        }
        text = json.dumps([arguments, shapes, self._learnt_on], sort_keys=True)
        number = hashlib.sha256(text.encode()).hexdigest()[:8]
        folder = self._directory / f"{type(part).__name__}-{number}"
        return {name: folder / f"{name}.keras" for name in networks}
