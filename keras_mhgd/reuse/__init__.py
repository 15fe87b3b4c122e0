"""Shares a teacher's features, and networks learnt from it, among runs."""

from keras_mhgd.reuse.preparations import Preparations
from keras_mhgd.reuse.teacher_cache import TeacherCache

__all__ = ["Preparations", "TeacherCache"]
