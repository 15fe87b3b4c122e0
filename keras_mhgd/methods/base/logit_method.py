"""Defines the base class of methods that compare outputs."""

from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.checks import require_positive
from keras_mhgd.features import Features
from keras_mhgd.linalg.directions import unit
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.divergence import mean_over_rows
from keras_mhgd.methods.pieces.targets import student_and_target
from keras_mhgd.tasks import (
    EMBEDDING,
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    Rows,
)


class LogitMethod(Method):
    """Compares logits at a temperature; a subclass defines the comparison.

    The logits are rows `(rows, outputs)`: see `keras_mhgd.tasks.Task`.

    Args:
        temperature: Divides the logits, > 0.
        standardize: Whether each sample's logits are standardized first.
            Only for single-label tasks, where exactly one class is right.
        weight: Multiplier of the method's terms, >= 0.

    Raises:
        ValueError: If an argument is out of range, or if student and
            teacher have different numbers of outputs.
    """

    needs = Needs(logits=True, tasks=(SINGLE_LABEL, MULTI_LABEL))

    row_terms: tuple[str, ...] = ()
    """The terms that are means over rows, weighted by `Features.weights`.

    These weights may then be any numbers >= 0. Other terms only tell 0 from
    the rest.
    """

    def __init__(self, temperature, standardize, weight, **kwargs):
        super().__init__(weight=weight, **kwargs)
        require_positive(temperature=temperature)
        self.temperature = temperature
        self.standardize = standardize
        # Standardizing shifts all logits; only a softmax ignores the shift.
        if standardize:
            self.needs = self.needs._replace(tasks=(SINGLE_LABEL,))

    def build(self, student, teacher):
        super().build(student, teacher)
        counts = [each.logits[-1] for each in (student, teacher)]
        if counts[0] != counts[1]:
            raise ValueError(
                "`logits` must be of the same classes in student and teacher. "
                f"Received: {counts[0]} and {counts[1]} outputs. "
                "Give both networks one logit for each class."
            )

    @property
    def compares_values(self) -> bool:
        """Whether the outputs are values or embeddings, not scores."""
        return self.task.kind in (REGRESSION, EMBEDDING)

    def rows(
        self, student: Features, teacher: Features, labels: tf.Tensor | None
    ) -> Rows:
        """Gives the rows to compare: scores of two or more classes, or values.

        An independent label becomes a row of its own with two classes, no and
        yes: sigmoid(z) is the second entry of softmax(0, z).

        Args:
            student: As for `call`.
            teacher: As for `call`.
            labels: As for `call`.

        Returns:
            The `Rows` of both networks, with their weights and labels.
        """
        rows = Rows(student.logits, teacher.logits, student.weights, labels)
        width = rows.student.shape[-1]
        if self.task.kind != MULTI_LABEL and (
            width > 1 or self.compares_values
        ):
            return rows
        weights = rows.weights
        if weights is not None:
            weights = tf.repeat(weights, width)
        if labels is not None:
            labels = tf.reshape(labels, [-1])
        return Rows(
            _no_and_yes(rows.student),
            _no_and_yes(rows.teacher),
            weights,
            labels,
        )

    def row_weights(
        self, student: Features, labels: tf.Tensor | None
    ) -> tf.Tensor | None:
        """Gives the weights of the rows of `student.logits` that count.

        Args:
            student: As for `call`.
            labels: As for `call`.

        Returns:
            `(rows,)`, 0 for rows that don't count; `None` if all count.
        """
        return student.weights

    def difference(self, rows: Rows) -> tf.Tensor:
        """Computes the difference of values: see `values_difference`.

        Args:
            rows: Values or embeddings. No gradient flows into the teacher's.

        Returns:
            Scalar >= 0.
        """
        return values_difference(
            *student_and_target(rows.student, rows.teacher),
            self.task.kind,
            rows.weights,
        )

    def get_config(self):
        return {
            **super().get_config(),
            "temperature": self.temperature,
            "standardize": self.standardize,
        }


def inner_method(
    method: Any, form: str, every_term: bool = False
) -> LogitMethod:
    """Checks the method whose samples another method weights.

    Args:
        method: The method, or its serialized form.
        form: What `method` may be, for the message.
        every_term: Whether all of its terms must be means over samples, and
            not only one of them.

    Returns:
        The method.

    Raises:
        TypeError: If it is no method on logits.
        ValueError: If its terms are no such means, or if it belongs to a
            distiller already.
    """
    if isinstance(method, dict):
        method = keras.saving.deserialize_keras_object(method)
    if not isinstance(method, LogitMethod):
        raise TypeError(
            f"`method` must be {form}. Received: {method!r} of type "
            f"{type(method).__name__}. Pass one such as "
            "keras_mhgd.methods.DKD()."
        )
    others = [each for each in method.terms if each not in method.row_terms]
    if not method.row_terms or (every_term and others):
        means = "a term that is a mean"
        if every_term:
            means = "terms that are all means"
        whose = f", whose {', '.join(others)} is not" * bool(method.row_terms)
        raise ValueError(
            f"`method` must have {means} over samples, which can be weighted. "
            f"Received: {type(method).__name__}{whose}. Pass another, such as "
            "keras_mhgd.methods.DKD()."
        )
    if method.built:
        raise ValueError(
            "`method` must be new. Received: one that belongs to a distiller "
            f"already, {method!r}. Make another one."
        )
    return method


def values_difference(
    a: tf.Tensor, b: tf.Tensor, kind: str, weights: tf.Tensor | None = None
) -> tf.Tensor:
    """Computes how far outputs that are values or embeddings differ.

    Values: mean over rows and outputs of (a - b)^2. Embeddings: mean over
    rows of 1 - cos(a, b).

    Args:
        a: `(rows, outputs)`, floating point.
        b: A tensor of the shape and dtype of `a`.
        kind: `"regression"` or `"embedding"`.
        weights: 1 for rows that count and 0 for others, `(rows,)`.

    Returns:
        Scalar >= 0.
    """
    if kind == REGRESSION:
        rows = tf.reduce_mean(tf.math.squared_difference(a, b), axis=-1)
    else:
        rows = 1 - tf.reduce_sum(unit(a) * unit(b), axis=-1)
    return mean_over_rows(rows, weights)


def _no_and_yes(logits: tf.Tensor) -> tf.Tensor:
    logits = tf.reshape(logits, [-1, 1])
    return tf.concat([tf.zeros_like(logits), logits], axis=-1)
