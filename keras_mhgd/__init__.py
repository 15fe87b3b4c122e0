"""Provides knowledge distillation in Keras by multi-head attention graphs."""

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
    tuning,
)
from keras_mhgd.distiller import Distiller
from keras_mhgd.reuse import Preparations, TeacherCache

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
    "tuning",
]
