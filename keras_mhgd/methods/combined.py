"""Several methods at once."""

from collections.abc import Sequence

import keras

from keras_mhgd import gradients
from keras_mhgd.features import Features
from keras_mhgd.methods.method import Method


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Combined(Method):
    """Trains the student by several methods together.

    The terms of all are added. If one of them limits its gradient, as MHGD
    does by clipping, it is limited against the gradient of the task and of
    all the other methods: it can't drown them.

    Args:
        methods: Two or more; of one that is combined itself its methods.

    Call arguments:
        student: `Features` of the student.
        teacher: `Features` of the teacher.
        labels: The batch's labels.

    Returns:
        The terms of all methods.

    Raises:
        ValueError: If there are fewer than two, if two have a term in common,
            or if two limit their gradient.

    Example:
        >>> distiller = keras_mhgd.Distiller(
        ...     student,
        ...     teacher,
        ...     method=[keras_mhgd.methods.MHGD(num_heads=4), "soft_logits"],
        ... )
    """

    def __init__(self, methods: Sequence[Method], **kwargs):
        super().__init__(**kwargs)
        self.methods = [each for one in methods for each in one.parts()]
        self.terms = tuple(
            term for method in self.methods for term in method.terms
        )
        if len(self.methods) < 2 or len(set(self.terms)) < len(self.terms):
            raise ValueError(
                "`methods` must be two or more different methods. Received: "
                f"{[type(method).__name__ for method in self.methods]}."
            )
        limiting = [
            method
            for method in self.methods
            if not isinstance(method.gradient_rule, gradients.Sum)
        ]
        if len(limiting) > 1:
            raise ValueError(
                "`methods` must have at most one that limits its gradient. "
                f"Received: {[type(method).__name__ for method in limiting]}. "
                "Pass clipping=None to the others."
            )
        if limiting:
            self.gradient_rule = limiting[0].gradient_rule
        self._limiting = limiting
        self.needs = tuple(
            {need: None for method in self.methods for need in method.needs}
        )
        self.teacher_learns = any(
            method.teacher_learns for method in self.methods
        )
        self.senses_logits = any(
            method.senses_logits for method in self.methods
        )
        self.min_points = max(method.min_points for method in self.methods)

    def parts(self):
        return self.methods

    @property
    def _asked(self):
        """All but those that initialised the student."""
        return [method for method in self.methods if method.terms]

    @property
    def limited_terms(self):
        return tuple(
            term
            for method in self._limiting or self.methods
            for term in method.limited_terms
        )

    @property
    def limited_variables(self):
        return [
            variable
            for method in self._limiting
            for variable in method.limited_variables
        ]

    @property
    def prepared(self):
        return all(method.prepared for method in self.methods)

    def prepare(self, teacher, student, **fit_arguments):
        for method in self.methods:
            if not method.prepared:
                method.prepare(teacher, student, **fit_arguments)

    def artifacts(self):
        return {
            name: network
            for method in self.methods
            for name, network in method.artifacts().items()
        }

    def build(self, student, teacher):
        self._require_points(student)  # before one of them is built
        for method in self.methods:
            method.build(student, teacher)

    def targets(self, teacher):
        found = [method.targets(teacher) for method in self.methods]
        # What one of them leaves out another may need.
        return Features(*map(_fullest, zip(*found, strict=True)))

    def call(self, student, teacher, labels):
        terms = {}
        for method in self._asked:
            terms |= method(student, teacher, labels)
        return terms

    def shares(self, student, teacher, labels):
        terms = {}
        for method in self._asked:
            terms |= method.shares(student, teacher, labels)
        return terms

    def update(self, student, teacher, labels):
        for method in self.methods:
            method.update(student, teacher, labels)

    def get_config(self):
        config = keras.Layer.get_config(self)  # each method has its weight
        methods = map(keras.saving.serialize_keras_object, self.methods)
        return {**config, "methods": list(methods)}

    @classmethod
    def from_config(cls, config):
        methods = map(keras.saving.deserialize_keras_object, config["methods"])
        return cls(**{**config, "methods": list(methods)})


def _fullest(values):
    """Of a field's values the one that leaves out least."""
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], list):
        return max(known, key=len)
    return known[0] if known else None
