"""Joins the gradient of the transfer with the gradient of the task.

A rule is called once a step. It takes a `Step` with the losses and the tape,
and returns the gradients that the optimizer applies.
"""

import abc
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd import finiteness
from keras_mhgd.checks import require_positive, unknown
from keras_mhgd.distribution import replicas
from keras_mhgd.features import Features
from keras_mhgd.tracing import traced_once

__all__ = [
    "SUMMARY",
    "Gradients",
    "Losses",
    "Norms",
    "PerFeatureClipping",
    "PerVariableClipping",
    "PublishedFormula",
    "Rule",
    "Step",
    "Sum",
    "apply",
    "get",
]

Gradients = list[tf.Tensor | None]
"""A gradient for each variable, or `None` where no loss reaches it."""


class Losses(NamedTuple):
    """Holds the three parts of a student's loss, as scalars.

    Attributes:
        task: The compiled loss, such as cross-entropy, plus the methods' terms
            that the rule doesn't limit.
        regularization: The sum of the student's own `losses`.
        transfer: The sum of the methods' terms that the rule limits.
    """

    task: tf.Tensor
    regularization: tf.Tensor
    transfer: tf.Tensor


class Step(NamedTuple):
    """Holds what a rule needs of a training step.

    Attributes:
        tape: The tape that recorded the losses. It is persistent if there are
            several backward passes.
        losses: The losses.
        variables: All trainable variables.
        epoch: Epochs since transfer began, a scalar.
        features: The student's features.
        own: Those of `variables` that belong to the methods whose terms are
            limited.
    """

    tape: tf.GradientTape
    losses: Losses
    variables: Sequence[tf.Variable]
    epoch: tf.Tensor
    features: Features
    own: Collection[tf.Variable] = ()

    def gradients(self, loss: Any, sources: Any = None) -> Any:
        """Computes the gradient of losses with respect to `sources`.

        Args:
            loss: One loss or several.
            sources: Tensors or variables; `None` for all `variables`.
        """
        sources = self.variables if sources is None else sources
        return self.tape.gradient(loss, sources)


SUMMARY = ("task_gradient", "transfer_gradient", "clipped")
"""Names of the scalars that `Norms.summary` gives."""


class Norms(NamedTuple):
    """Holds the gradient norms that a rule compares in a step.

    Each attribute is a vector with an entry for each variable or sensing
    point. Norms are those of the whole batch.

    Attributes:
        task: Norms of the task's gradient.
        transfer: Norms of the transfer's gradient, before it is limited.
        factors: Factors by which the rule scales the transfer's gradient.
    """

    task: tf.Tensor
    transfer: tf.Tensor
    factors: tf.Tensor

    def summary(self, scale: float = 1.0) -> dict[str, tf.Tensor]:
        """Computes scalars for monitoring a training.

        Args:
            scale: Scale of the losses. Both norms are divided by it.

        Returns:
            A dict with the names of `SUMMARY`. The first two scalars are the
            task's and the transfer's norm over all variables or sensing
            points. The third is the fraction where the transfer is clipped,
            among the variables or sensing points that the transfer reaches.
        """
        reached = self.transfer > 0
        clipped = reached & (self.factors < 1)
        count = tf.math.count_nonzero
        share = tf.math.divide_no_nan(
            *(count(each, dtype=tf.float32) for each in (clipped, reached))
        )
        both = (tf.norm(each) / scale for each in (self.task, self.transfer))
        return dict(zip(SUMMARY, (*both, share), strict=True))


class Rule(abc.ABC):
    """Joins the task's and the transfer's gradient."""

    num_backward_passes = 1
    """Number of backward passes through the student in a step."""

    split = None
    """A function for a rule that acts inside the student; otherwise `None`.

    `split(feature, epoch)` gives a sensing point's output twice: for the layers
    behind the sensing point, and for the method.
    """

    @abc.abstractmethod
    def __call__(self, step: Step) -> Gradients:
        """Computes the gradients that the optimizer applies.

        With several replicas, each computes its share. The optimizer sums the
        shares.

        Args:
            step: The losses, the tape that recorded them, and the variables.

        Returns:
            One gradient for each variable, `None` where no loss reaches it.
        """

    @abc.abstractmethod
    def factors(
        self, task_norms: tf.Tensor, transfer_norms: tf.Tensor, epoch: tf.Tensor
    ) -> tf.Tensor:
        """Computes the factors by which transfer gradients are scaled.

        Args:
            task_norms: Norms of the task's gradient over the whole batch: a
                vector with an entry for each variable or sensing point, or a
                scalar for one of them.
            transfer_norms: Norms of the transfer's gradient, likewise.
            epoch: Epochs since transfer began, a scalar.

        Returns:
            Factors >= 0, of the shape of `transfer_norms`.
        """

    def norms(self, step: Step) -> Norms:
        """Computes the gradient norms, for monitoring.

        This takes separate backward passes. The gradients for the optimizer
        don't change by a single bit.

        Args:
            step: As in `__call__`, with a persistent tape and the student's
                variables.

        Returns:
            The norms for each variable, unless a subclass says otherwise.
        """
        norms = [
            _norms(_zeros_for_none(replicas.summed(step.gradients(loss))))
            for loss in (step.losses.task, step.losses.transfer)
        ]
        return Norms(*norms, self.factors(*norms, step.epoch))


class Sum(Rule):
    """Adds the losses: one backward pass, nothing clipped."""

    def __call__(self, step):
        return step.gradients(list(step.losses))

    def factors(self, task_norms, transfer_norms, epoch):
        return tf.ones_like(transfer_norms)


class _Separate(Rule):
    """Joins the gradients variable by variable, by two backward passes."""

    num_backward_passes = 2

    def __call__(self, step):
        task, regularization, transfer = map(step.gradients, step.losses)
        # The rule compares norms of the whole batch's gradients.
        joined = self.join(*replicas.summed((task, transfer)), step.epoch)
        return [
            _add(_share_of(gradient), decay)
            for gradient, decay in zip(joined, regularization, strict=True)
        ]

    def join(
        self, task: Gradients, transfer: Gradients, epoch: tf.Tensor
    ) -> Gradients:
        """Adds the transfer's limited gradient to the task's gradient.

        Args:
            task: The task's gradient of each variable over the whole batch,
                without weight decay.
            transfer: The transfer's gradient of each variable, likewise.
            epoch: Epochs since transfer began, a scalar.

        Returns:
            The sum for each variable, `None` where neither reaches it.
        """
        pairs = list(zip(task, transfer, strict=True))
        both = [
            index
            for index, (main, moved) in enumerate(pairs)
            if main is not None and moved is not None
        ]
        factors, share = {}, 1.0
        if both:
            norms, of_transfer = (
                _norms([side[index] for index in both])
                for side in (task, transfer)
            )
            found = self.factors(norms, of_transfer, epoch)
            factors = dict(zip(both, tf.unstack(found), strict=True))
            share = _quotient(found, of_transfer)
        return [
            _add(main, _scaled(moved, factors.get(index, share)))
            for index, (main, moved) in enumerate(pairs)
        ]


class PerVariableClipping(_Separate):
    """Clips each variable's transfer gradient against its task gradient.

    This is the rule of the published code. Let `g` be the task's gradient of a
    variable (without weight decay), `t` the transfer's gradient, and `e` the
    number of epochs since transfer began. The optimizer gets

        g + decay + t * n / max(||t||, n),  n = bound * sigmoid(e) * ||g||.

    A variable that only the task reaches gets the task's gradient. A variable
    that only the transfer reaches, such as a projection of the method, gets the
    transfer's gradient times a common factor. This factor compares the transfer
    gradients of all variables that both reach: it is their joint norm after
    clipping, divided by their joint norm before clipping.

    Args:
        bound: Multiplier of the norm that is allowed, > 0.
    """

    def __init__(self, bound: float = 1.0):
        require_positive(clip_bound=bound)
        self.bound = bound

    def factors(self, task_norms, transfer_norms, epoch):
        return _allowed(task_norms, transfer_norms, epoch, self.bound)


class PerFeatureClipping(Rule):
    """Clips the transfer's gradient where it enters the student.

    This rule takes one backward pass. At a sensing point, let `g` be the
    gradient that arrives from the layers behind it, `t` the transfer's gradient
    with respect to this feature alone, and `e` the number of epochs since
    transfer began. The layers before the sensing point get

        g + t * n / max(||t||, n),  n = bound * sigmoid(e) * ||g||,

    with norms over the whole batch. The backward pass runs from the output to
    the input, so `g` includes the clipped transfer gradients of all sensing
    points further behind.

    The gradient of a variable that only the transfer reaches, such as a
    projection of the method, is scaled by a common factor. This factor is the
    joint norm of the transfer gradients at all sensing points after clipping,
    divided by their joint norm before clipping.

    This is not the published rule: see `PerVariableClipping`.

    Args:
        bound: Multiplier of the norm that is allowed, > 0.
    """

    def __init__(self, bound: float = 1.0):
        require_positive(clip_bound=bound)
        self.bound = bound

    def split(
        self, feature: tf.Tensor, epoch: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Forks a feature for the layers behind and for the method.

        Args:
            feature: Output of a sensing point, a batch.
            epoch: Epochs since transfer began, a scalar.

        Returns:
            The feature twice. The first is for the rest of the network. The
            second is for the method, and its gradient is clipped against the
            gradient of the first.
        """

        @tf.custom_gradient
        def fork(feature):
            def gradient(arriving, transfer):
                norms = tf.unstack(_batch_norms([arriving, transfer]))
                allowed = self.factors(*norms, epoch)
                return arriving + _scaled(transfer, allowed)

            return (tf.identity(feature), tf.identity(feature)), gradient

        return fork(feature)

    def factors(self, task_norms, transfer_norms, epoch):
        return _allowed(task_norms, transfer_norms, epoch, self.bound)

    def norms(self, step):
        """Computes the norms at each sensing point, where this rule clips."""
        sides = step.features.maps, step.features.forks
        found = step.gradients(list(step.losses), sides)
        return self._at_points(map(_zeros_for_none, found), step.epoch)

    def _at_points(self, sides, epoch) -> Norms:
        norms = [_batch_norms(each) for each in sides]
        return Norms(*norms, self.factors(*norms, epoch))

    def __call__(self, step):
        if not step.own:
            return step.gradients(list(step.losses))
        sides = step.features.maps, step.features.forks
        found, *sides = step.gradients(
            list(step.losses), [step.variables, *sides]
        )
        sides = [
            (arriving, transfer)
            for arriving, transfer in zip(*sides, strict=True)
            if arriving is not None and transfer is not None
        ]
        share = 1.0
        if sides:
            norms = self._at_points(zip(*sides, strict=True), step.epoch)
            share = _quotient(norms.factors, norms.transfer)
        only_transfer = {id(variable) for variable in step.own}
        return [
            _scaled(gradient, share)
            if id(variable) in only_transfer
            else gradient
            for variable, gradient in zip(step.variables, found, strict=True)
        ]


class PublishedFormula(_Separate):
    """Scales each variable's transfer gradient by the published formula.

    With `g` the task's gradient of a variable and `t` the transfer's gradient,
    the optimizer gets

        g + decay + sigmoid(tau) * t,  tau = max(1, ||g|| / ||t||).

    The factor `sigmoid(tau)` lies between 0.73 and 1, so the transfer's
    gradient is not bounded.
    """

    def factors(self, task_norms, transfer_norms, epoch):
        ratios = tf.math.divide_no_nan(task_norms, transfer_norms)
        return tf.sigmoid(tf.maximum(ratios, 1.0))


def get(name: str | None, bound: float = 1.0):
    """Makes a rule by name.

    Args:
        name: `"per_variable"`, `"per_feature"`, `"formula"`, or `None` for
            `Sum`.
        bound: The `bound` of the first two rules.

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


def apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: Gradients,
    variables: Sequence[keras.Variable],
    finite: tf.Tensor | None = None,
) -> list[str]:
    """Updates the variables that a loss reaches.

    A `LossScaleOptimizer` passes over gradients that overflow, but looks at
    those of one replica alone. Here all replicas pass over them if one does.

    Args:
        optimizer: The optimizer, built for all variables.
        gradients: One for each variable, `None` where no loss reaches it.
        variables: All trainable variables.
        finite: Whether all losses and gradients are finite on all replicas, a
            scalar boolean. With `None`, the gradients are checked if needed.

    Returns:
        The paths of the variables that no loss reaches.

    Raises:
        ValueError: If there is no gradient at all.
    """
    pairs = list(zip(gradients, variables, strict=True))
    # Keras would warn of the other variables as if a loss were missing.
    reached = [pair for pair in pairs if pair[0] is not None]
    gradients, variables = zip(*(reached or pairs), strict=True)
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if scales and reached:
        if finite is None and replicas.number() > 1:
            finite = finiteness.all_finite(gradients)
        if finite is not None:
            gradients = finiteness.spoilt_unless(finite, gradients)
    optimizer.apply(gradients, variables)
    return [each.path for gradient, each in pairs if gradient is None]


def _allowed(
    task_norms: tf.Tensor,
    transfer_norms: tf.Tensor,
    epoch: tf.Tensor,
    bound: float,
) -> tf.Tensor:
    """Computes the factors, 0 to 1, that clip the transfer's gradients."""
    allowed = bound * tf.sigmoid(tf.cast(epoch, task_norms.dtype)) * task_norms
    # `tf.clip_by_norm` would give NaN where both norms are zero.
    largest = tf.maximum(transfer_norms, allowed)
    return tf.math.divide_no_nan(allowed, largest)


def _norms(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Computes the norms of tensors, in float32 or float64."""
    gradients = [tf.convert_to_tensor(each) for each in gradients]
    dtypes = {gradient.dtype for gradient in gradients}
    dtype = tf.float64 if tf.float64 in dtypes else tf.float32
    norms = _measured(*(tf.cast(each, dtype) for each in gradients))
    return tf.ensure_shape(norms, len(gradients))


@traced_once
def _measured(*gradients: tf.Tensor) -> tf.Tensor:
    def squares(gradients):
        return 2 * tf.stack([tf.nn.l2_loss(each) for each in gradients])

    # Squares may overflow, for example in gradients that carry a loss scale, or
    # they may vanish. Those of float32 do neither in float64.
    def in_float64():
        wide = squares([tf.cast(each, tf.float64) for each in gradients])
        return tf.cast(tf.sqrt(wide), found.dtype)

    found = squares(gradients)
    in_range = tf.math.is_finite(found) & (found > 1e-30)
    return tf.cond(tf.reduce_all(in_range), lambda: tf.sqrt(found), in_float64)


def _batch_norms(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Computes norms over the whole batch from the replicas' gradients."""
    norms = _norms(gradients)
    if replicas.number() == 1:
        return norms
    parts = replicas.joined(norms[tf.newaxis])
    return _norms(tf.unstack(parts, len(gradients), axis=1))


def _quotient(factors: tf.Tensor, norms: tf.Tensor) -> tf.Tensor:
    """Divides the norm of all scaled gradients by their norm before scaling."""
    return tf.math.divide_no_nan(*tf.unstack(_norms([factors * norms, norms])))


def _scaled(
    gradient: tf.Tensor | None, factor: tf.Tensor | float
) -> tf.Tensor | None:
    if gradient is None:
        return None
    return tf.cast(factor, gradient.dtype) * gradient


def _zeros_for_none(gradients: Gradients) -> list[tf.Tensor]:
    # A tape's `unconnected_gradients` doesn't work for Keras's variables.
    return [
        tf.zeros(()) if each is None else tf.convert_to_tensor(each)
        for each in gradients
    ]


def _share_of(gradient):
    return None if gradient is None else replicas.share(gradient)


def _add(a, b):
    if a is None:
        return b
    return a if b is None else a + b
