"""Exports networks as files for deployment and loads them as functions."""

from keras_mhgd.export.formats import names
from keras_mhgd.export.loading import Predictor, load
from keras_mhgd.export.proof import ExportedModel
from keras_mhgd.export.serving import Serving
from keras_mhgd.export.student import export_student

__all__ = [
    "ExportedModel",
    "Predictor",
    "Serving",
    "export_student",
    "load",
    "names",
]
