"""Knowledge distillation for Keras by multi-head attention graphs."""

from keras_mhgd import (
    callbacks,
    compression,
    data,
    export,
    features,
    fitting,
    gradients,
    graph,
    linalg,
    methods,
    models,
    replicas,
    tuning,
)
from keras_mhgd.cache import TeacherCache
from keras_mhgd.distiller import Distiller
from keras_mhgd.preparations import Preparations

__version__ = "0.1.0"

__all__ = [
    "Distiller",
    "Preparations",
    "TeacherCache",
    "callbacks",
    "compression",
    "data",
    "export",
    "features",
    "fitting",
    "gradients",
    "graph",
    "linalg",
    "methods",
    "models",
    "replicas",
    "tuning",
]
