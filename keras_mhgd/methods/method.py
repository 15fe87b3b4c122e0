"""What every method of distillation is to the distiller."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.features import FeatureExtractor, Features


class Method(keras.Layer):
    """A method of distillation: loss terms, and what they need.

    A subclass makes its auxiliary weights in `build`, computes its terms in
    `call`, and names them in `terms`. It is a tracked Keras layer, so its
    weights train, save and resume with the distiller.

    Args:
        weight: Multiplier of the method's terms, >= 0.

    Call arguments:
        student: `Features` of the student, in training mode.
        teacher: `Features` of the frozen teacher, or their `targets`.
        labels: The batch's labels, as the data gives them.

    Returns:
        A dict of scalars, float32: one for each of `terms`.
    """

    terms: tuple[str, ...] = ()
    """Names of the loss terms, in the history and the progress bar."""

    needs: tuple[str, ...] = ("maps",)
    """Which features it reads: `"maps"`, `"logits"`, `"embedding"`."""

    min_points: int = 1
    """Sensing points that it needs, if it reads maps."""

    def __init__(self, weight: float = 1.0, **kwargs):
        if weight < 0:
            raise ValueError(
                f"`weight` must be 0 or more. Received: weight={weight}."
            )
        super().__init__(**{"dtype": "float32", **kwargs})
        self.weight = weight
        self.gradient_rule = gradients.Sum()

    @property
    def limited_terms(self) -> tuple[str, ...]:
        """Terms whose gradient `gradient_rule` weighs against all others."""
        return self.terms

    @property
    def limited_variables(self) -> list[keras.Variable]:
        """Variables of its own that those terms train."""
        return self.trainable_variables

    @property
    def prepared(self) -> bool:
        """Whether the student can train: nothing is left to prepare."""
        return True

    def prepare(
        self,
        teacher: FeatureExtractor,
        student: FeatureExtractor,
        **fit_arguments: Any,
    ) -> None:
        """Learns what must be known before the student trains.

        Args:
            teacher: The teacher's predictions and sensing points.
            student: The student's.
            **fit_arguments: The data, as `keras.Model.fit` takes it.
        """

    def artifacts(self) -> Mapping[str, keras.Model]:
        """Networks that were prepared and are worth a file of their own."""
        return {}

    def build(self, student: Features, teacher: Features) -> None:
        """Makes weights for features of the given shapes.

        A subclass calls this first.

        Raises:
            ValueError: If the method reads maps and there are too few.
        """
        if "maps" in self.needs and len(student.maps) < self.min_points:
            raise ValueError(
                f"`sensing_points` must give {type(self).__name__} "
                f"{self.min_points} or more layers. Received: "
                f"{len(student.maps)}. Add layers of both networks."
            )

    def get_build_config(self):
        """Nothing: the distiller builds the method anew."""

    def targets(self, teacher: Features) -> Features:
        """Reduces the teacher's features to what `call` reads of them.

        Runs outside of the gradient's tape, and once for all epochs where
        there is a `keras_mhgd.TeacherCache`.
        """
        return teacher

    def call(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        raise NotImplementedError(
            f"{type(self).__name__} must implement `call`."
        )

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}
