"""What the methods that compare class distributions have in common."""

import tensorflow as tf

from keras_mhgd.features import Features
from keras_mhgd.methods.method import Method
from keras_mhgd.methods.ranges import require_positive


class LogitMethod(Method):
    """Compares logits at a temperature; a subclass says how.

    One output is the logit of the second of two classes.

    Args:
        temperature: Divides the logits, > 0.
        standardize: Whether logits are standardized for each sample first.
        weight: Multiplier of the method's terms, >= 0.

    Raises:
        ValueError: If an argument is out of range, or the classes differ.
    """

    needs = ("logits",)

    def __init__(self, temperature, standardize, weight, **kwargs):
        super().__init__(weight=weight, **kwargs)
        require_positive(temperature=temperature)
        self.temperature = temperature
        self.standardize = standardize

    def build(self, student, teacher):
        super().build(student, teacher)
        counts = [each.logits[-1] for each in (student, teacher)]
        if counts[0] != counts[1]:
            raise ValueError(
                "`logits` must be of the same classes in student and teacher. "
                f"Received: {counts[0]} and {counts[1]} outputs. "
                "Give both networks one logit for each class."
            )

    def class_logits(self, features: Features) -> tf.Tensor:
        """Gives the logits of two or more classes, `(batch, classes)`."""
        logits = features.logits
        if logits.shape[-1] > 1:
            return logits
        # sigmoid(z) is the second of softmax(0, z).
        return tf.concat([tf.zeros_like(logits), logits], axis=-1)

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "standardize": self.standardize,
        }
