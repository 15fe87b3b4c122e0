"""How the transfer's gradient joins the task's.

A rule is called once a step as `rule(tape, losses, variables, epoch)` and
returns what the optimizer applies.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_mhgd.choices import unknown

Gradients = list[tf.Tensor | None]


class Losses(NamedTuple):
    """The three parts of a student's loss, scalars.

    Attributes:
        task: The compiled loss, such as cross-entropy, and the method's terms
            that the rule doesn't limit.
        regularization: The sum of the student's own `losses`.
        transfer: The sum of the method's terms that the rule limits.
    """

    task: tf.Tensor
    regularization: tf.Tensor
    transfer: tf.Tensor


class Sum:
    """Adds the losses: one backward pass, nothing clipped."""

    num_backward_passes = 1

    def __call__(
        self,
        tape: tf.GradientTape,
        losses: Losses,
        variables: Sequence[tf.Variable],
        epoch: tf.Tensor,
    ) -> Gradients:
        return tape.gradient(list(losses), variables)


class _Separate:
    """Joins the two gradients variable by variable: two backward passes."""

    num_backward_passes = 2

    def __call__(self, tape, losses, variables, epoch) -> Gradients:
        task, regularization, transfer = (
            tape.gradient(loss, variables) for loss in losses
        )
        joined = self.join(task, transfer, epoch)
        return [
            _add(gradient, decay)
            for gradient, decay in zip(joined, regularization, strict=True)
        ]

    def join(
        self, task: Gradients, transfer: Gradients, epoch: tf.Tensor
    ) -> Gradients:
        """Adds the limited gradient of the transfer to the task's."""
        limited = {
            index: self.limit(main, moved, epoch)
            for index, (main, moved) in enumerate(
                zip(task, transfer, strict=True)
            )
            if main is not None and moved is not None
        }
        share = 1.0
        if limited:
            before = _norm_of_all([transfer[index] for index in limited])
            share = tf.math.divide_no_nan(
                _norm_of_all(limited.values()), before
            )
        return [
            share * moved
            if main is None and moved is not None
            else _add(main, limited.get(index))
            for index, (main, moved) in enumerate(
                zip(task, transfer, strict=True)
            )
        ]


class PerVariableClipping(_Separate):
    """Clips each variable's transfer gradient against its task gradient.

    The rule of the published code. With `g` the task's gradient of a
    variable (without weight decay), `t` the transfer's and `e` the epochs
    since transfer began, the optimizer gets

        g + decay + t * n / max(||t||, n),  n = bound * sigmoid(e) * ||g||.

    A variable that the transfer doesn't reach gets the task's alone. One that
    the task doesn't reach, such as a projection of the method, gets the
    transfer's times what is left of all others' on the whole: the quotient of
    their norms after and before.

    Args:
        bound: Multiplier of the norm that is allowed, > 0.
    """

    def __init__(self, bound: float = 1.0):
        if not bound > 0:
            raise ValueError(
                f"`clip_bound` must be positive. Received: clip_bound={bound}."
            )
        self.bound = bound

    def limit(self, task, transfer, epoch):
        allowed = self.bound * tf.sigmoid(tf.cast(epoch, task.dtype))
        allowed *= _norm(task)
        # Not clip_by_norm: it gives NaN where both norms are zero.
        largest = tf.maximum(_norm(transfer), allowed)
        return transfer * tf.math.divide_no_nan(allowed, largest)


class PublishedFormula(_Separate):
    """Scales each variable's transfer gradient by the published formula.

    With `g` the task's gradient of a variable and `t` the transfer's,

        g + decay + sigmoid(tau) * t,  tau = max(1, ||g|| / ||t||).

    The factor lies between 0.73 and 1: this bounds nothing.
    """

    def limit(self, task, transfer, epoch):
        ratio = tf.math.divide_no_nan(_norm(task), _norm(transfer))
        return transfer * tf.sigmoid(tf.maximum(ratio, 1.0))


def get(name: str | None, bound: float = 1.0):
    """Makes a rule by name.

    Args:
        name: `"per_variable"`, `"formula"`, or `None` for the sum.
        bound: See `PerVariableClipping`.

    Returns:
        The rule.

    Raises:
        ValueError: If the name is unknown or the bound is not positive.
    """
    if name is None:
        return Sum()
    if name == "per_variable":
        return PerVariableClipping(bound)
    if name == "formula":
        return PublishedFormula()
    raise unknown("clipping", name, ["per_variable", "formula", "None"])


def _norm(x: tf.Tensor) -> tf.Tensor:
    # Scaled by the largest entry: squares of float32 gradients that carry a
    # loss scale could overflow.
    largest = tf.reduce_max(tf.abs(x))
    return largest * tf.norm(tf.math.divide_no_nan(x, largest))


def _norm_of_all(gradients: Iterable[tf.Tensor]) -> tf.Tensor:
    return _norm(tf.stack([_norm(gradient) for gradient in gradients]))


def _add(a, b):
    if a is None:
        return b
    return a if b is None else a + b
