"""What the methods that compare class distributions have in common."""

from keras_mhgd.methods.method import Method
from keras_mhgd.methods.ranges import require_positive


class LogitMethod(Method):
    """Compares logits at a temperature; a subclass says how.

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
        if counts[0] != counts[1] or counts[0] < 2:
            raise ValueError(
                "`logits` must be of the same two or more classes in student "
                f"and teacher. Received: {counts[0]} and {counts[1]} classes. "
                "Give both networks one logit for each class."
            )

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "standardize": self.standardize,
        }
