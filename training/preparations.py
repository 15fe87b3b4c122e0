"""Networks that methods learn from a teacher alone, shared by runs."""

import hashlib
import json
import os
import pathlib
from typing import Any

from keras_mhgd import methods
from keras_mhgd.files import require_writable
from training.networks import load_network, save_network


class Preparations:
    """A folder of networks that were learnt from one teacher.

    They belong to a method with its arguments, and to the data and teacher
    that they were learnt on: anything else looks for a folder of another name.

    Args:
        directory: Where the folders are; made if missing.
        learnt_on: What the networks depend on beside their method, plain JSON
            values.
    """

    def __init__(self, directory: str | os.PathLike, learnt_on: dict[str, Any]):
        self._directory = require_writable(directory)
        self._learnt_on = learnt_on

    def reuse(self, method: methods.Method) -> methods.Method:
        """Makes the same method with the networks that are there."""
        parts = [self._reuse(part) for part in method.parts]
        return parts[0] if len(parts) == 1 else methods.Combined(parts)

    def keep(self, method: methods.Method) -> None:
        """Saves the networks of a prepared method that are not there."""
        for part in method.parts:
            for name, network in part.artifacts().items():
                path = self._folder(part) / f"{name}.keras"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    save_network(network, path)

    def _reuse(self, part: methods.Method) -> methods.Method:
        networks = {
            path.stem: load_network(path)
            for path in self._folder(part).glob("[!.]*.keras")
        }
        if not networks:
            return part
        return type(part)(**part.get_config(), **networks)

    def _folder(self, part: methods.Method) -> pathlib.Path:
        config = part.get_config()
        del config["name"]  # counted up by Keras
        text = json.dumps(
            [config, self._learnt_on], sort_keys=True, default=str
        )
        number = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self._directory / f"{type(part).__name__}-{number}"
