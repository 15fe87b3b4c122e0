"""Provides knowledge distillation in Keras by multi-head attention graphs."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from keras_mhgd import _program as _program  # before TensorFlow
from keras_mhgd import (
    callbacks,
    data,
    distribution,
    export,
    features,
    gradients,
    graph,
    linalg,
    methods,
    models,
    presets,
    tasks,
)
from keras_mhgd.distiller import Distiller
from keras_mhgd.reuse import Preparations, TeacherCache

if TYPE_CHECKING:
    from keras_mhgd import tuning

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "Preparations",
    "TeacherCache",
    "callbacks",
    "data",
    "distribution",
    "export",
    "features",
    "gradients",
    "graph",
    "linalg",
    "methods",
    "models",
    "presets",
    "tasks",
    "tuning",
]


def __getattr__(name: str) -> ModuleType:
    """Imports `tuning` at its first use: keras-tuner imports slowly."""
    if name == "tuning":
        return importlib.import_module("keras_mhgd.tuning")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
