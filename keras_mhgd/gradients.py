"""How the transfer's gradient joins the task's.

A rule is called once a step as `rule(tape, losses, variables, epoch,
features, own)` and returns what the optimizer applies.
"""

import abc
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_mhgd import replicas
from keras_mhgd.choices import unknown
from keras_mhgd.features import Features

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


class Rule(abc.ABC):
    """How the two gradients are joined."""

    num_backward_passes = 1
    """Through the student, a step."""

    split = None
    """Of a rule that acts inside the student: `split(feature, epoch)` gives
    a sensing point's output twice, for the layers behind and for the method.
    """

    def maps(self, features: Features) -> list[tf.Tensor]:
        """Gives the maps that the limited method reads."""
        return features.maps

    @abc.abstractmethod
    def __call__(
        self,
        tape: tf.GradientTape,
        losses: Losses,
        variables: Sequence[tf.Variable],
        epoch: tf.Tensor,
        features: Features,
        own: Collection[tf.Variable],
    ) -> Gradients:
        """Computes what the optimizer applies.

        Of several replicas, each computes its share: optimizers sum.

        Args:
            tape: What recorded the losses; persistent if there are several
                backward passes.
            losses: Of this step.
            variables: All that train.
            epoch: Epochs since transfer began, a scalar.
            features: The student's in this step.
            own: The variables among them that are the limiting method's.

        Returns:
            One gradient a variable, `None` where no loss reaches it.
        """


class Sum(Rule):
    """Adds the losses: one backward pass, nothing clipped."""

    def __call__(
        self, tape, losses, variables, epoch, features, own
    ) -> Gradients:
        return tape.gradient(list(losses), variables)


class _Separate(Rule):
    """Joins the two gradients variable by variable: two backward passes."""

    num_backward_passes = 2

    def __call__(
        self, tape, losses, variables, epoch, features, own
    ) -> Gradients:
        task, regularization, transfer = (
            tape.gradient(loss, variables) for loss in losses
        )
        # Of the whole batch: so are the norms that are compared.
        joined = self.join(*replicas.summed((task, transfer)), epoch)
        return [
            _add(_share_of(gradient), decay)
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
        share = _quotient(
            limited.values(), [transfer[index] for index in limited]
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
        self.bound = _require_positive(bound)

    def limit(self, task, transfer, epoch):
        return transfer * _allowed(
            _norm(task), _norm(transfer), epoch, self.bound, transfer.dtype
        )


class PerFeatureClipping(Rule):
    """Clips the transfer's gradient where it enters the student.

    One backward pass. At a sensing point, with `g` the gradient that arrives
    there from the layers behind, `t` the transfer's by this feature alone,
    and `e` the epochs since transfer began, the layers before get

        g + t * n / max(||t||, n),  n = bound * sigmoid(e) * ||g||,

    the norms over the whole batch. Points are passed from the output towards
    the input, so `g` holds what was let in at those behind. The gradient of
    variables that only the transfer reaches, such as a projection of the
    method, is scaled by what was let in on the whole: the quotient of the
    norms over all sensing points after and before.

    This is not the published rule: see `PerVariableClipping`.

    Args:
        bound: Multiplier of the norm that is allowed, > 0.
    """

    def __init__(self, bound: float = 1.0):
        self.bound = _require_positive(bound)

    def split(
        self, feature: tf.Tensor, epoch: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Forks a feature for the layers behind and for the method.

        Args:
            feature: Output of a sensing point, a batch.
            epoch: Epochs since transfer began, a scalar.

        Returns:
            The feature twice: what the network goes on with, and what the
            method reads, whose gradient is clipped against the former's.
        """

        @tf.custom_gradient
        def fork(feature):
            def gradient(arriving, transfer):
                allowed = self._allowed(arriving, transfer, epoch)
                return arriving + allowed * transfer

            return (tf.identity(feature), tf.identity(feature)), gradient

        return fork(feature)

    def _allowed(self, arriving, transfer, epoch):
        norms = _batch_norm(arriving), _batch_norm(transfer)
        return _allowed(*norms, epoch, self.bound, transfer.dtype)

    def maps(self, features):
        return features.maps if features.forks is None else features.forks

    def __call__(
        self, tape, losses, variables, epoch, features, own
    ) -> Gradients:
        if not own:
            return tape.gradient(list(losses), variables)
        sides = features.maps, features.forks
        found, *sides = tape.gradient(list(losses), [variables, *sides])
        sides = [
            (arriving, transfer)
            for arriving, transfer in zip(*sides, strict=True)
            if arriving is not None and transfer is not None
        ]
        share = _quotient(
            [
                transfer * self._allowed(arriving, transfer, epoch)
                for arriving, transfer in sides
            ],
            [transfer for _, transfer in sides],
            _batch_norm,
        )
        only_transfer = {id(variable) for variable in own}
        return [
            share * gradient
            if id(variable) in only_transfer and gradient is not None
            else gradient
            for variable, gradient in zip(variables, found, strict=True)
        ]


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
        name: `"per_variable"`, `"per_feature"`, `"formula"`, or `None` for
            the sum.
        bound: Of the first two.

    Returns:
        The rule.

    Raises:
        ValueError: If the name is unknown or the bound is not positive.
    """
    if name is None:
        return Sum()
    if name == "per_variable":
        return PerVariableClipping(bound)
    if name == "per_feature":
        return PerFeatureClipping(bound)
    if name == "formula":
        return PublishedFormula()
    raise unknown(
        "clipping", name, ["per_variable", "per_feature", "formula", "None"]
    )


def _require_positive(bound: float) -> float:
    if not bound > 0:
        raise ValueError(
            f"`clip_bound` must be positive. Received: clip_bound={bound}."
        )
    return bound


def _allowed(
    task_norm: tf.Tensor,
    transfer_norm: tf.Tensor,
    epoch: tf.Tensor,
    bound: float,
    dtype: tf.DType,
) -> tf.Tensor:
    """What is left of the transfer's gradient when clipped, 0 to 1."""
    allowed = bound * tf.sigmoid(tf.cast(epoch, task_norm.dtype)) * task_norm
    # Not clip_by_norm: it gives NaN where both norms are zero.
    largest = tf.maximum(transfer_norm, allowed)
    return tf.cast(tf.math.divide_no_nan(allowed, largest), dtype)


def _norm(x: tf.Tensor) -> tf.Tensor:
    # In float32 at least. Where squares overflow, as they may in gradients
    # that carry a loss scale, or vanish, x is scaled by its largest entry.
    if x.dtype != tf.float64:
        x = tf.cast(x, tf.float32)

    def scaled():
        largest = tf.reduce_max(tf.abs(x))
        return largest * tf.norm(tf.math.divide_no_nan(x, largest))

    squares = 2 * tf.nn.l2_loss(x)
    in_range = tf.math.is_finite(squares) & (squares > 1e-30)
    return tf.cond(in_range, lambda: tf.sqrt(squares), scaled)


def _batch_norm(x: tf.Tensor) -> tf.Tensor:
    """Norm over the whole batch, of which each replica has a part."""
    norm = _norm(x)
    if replicas.number() == 1:
        return norm
    return _norm(replicas.joined(norm[tf.newaxis]))


def _quotient(
    after: Iterable[tf.Tensor],
    before: Iterable[tf.Tensor],
    norm: Callable[[tf.Tensor], tf.Tensor] = _norm,
) -> tf.Tensor | float:
    """Quotient of the norms of two lists of gradients; 1 of empty ones."""
    norms = [[norm(each) for each in part] for part in (after, before)]
    if not norms[0]:
        return 1.0
    return tf.math.divide_no_nan(*(_norm(tf.stack(part)) for part in norms))


def _share_of(gradient):
    return None if gradient is None else replicas.share(gradient)


def _add(a, b):
    if a is None:
        return b
    return a if b is None else a + b
