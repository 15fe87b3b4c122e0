"""What runs share of one teacher: its outputs, and what is learnt from it."""

from keras_mhgd.reuse.preparations import Preparations
from keras_mhgd.reuse.teacher_cache import TeacherCache

__all__ = ["Preparations", "TeacherCache"]
