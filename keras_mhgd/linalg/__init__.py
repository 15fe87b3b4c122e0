"""Computes singular vectors with an exact gradient."""

from keras_mhgd.linalg.singular_vectors import align, right_singular_vectors

__all__ = ["align", "right_singular_vectors"]
