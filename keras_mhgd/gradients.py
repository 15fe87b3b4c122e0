"""How the transfer's gradient joins the task's.

A rule is called once a step as `rule(tape, losses, variables, epoch,
features, own)` and returns what the optimizer applies.
"""

import abc
from collections.abc import Collection, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_mhgd import finiteness, replicas
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


SUMMARY = ("task_gradient", "transfer_gradient", "clipped")
"""Names of what `Norms.summary` gives."""


class Norms(NamedTuple):
    """What a rule weighs in a step: vectors, of the whole batch.

    Attributes:
        task: Norm of the task's gradient, of each variable or sensing point.
        transfer: Norm of the transfer's, before it is limited.
        factors: What the rule leaves of the transfer's.
    """

    task: tf.Tensor
    transfer: tf.Tensor
    factors: tf.Tensor

    def summary(self, scale: float = 1.0) -> dict[str, tf.Tensor]:
        """Gives the scalars that a training is watched by.

        Args:
            scale: Of the losses: both norms are divided by it.

        Returns:
            By `SUMMARY`: both norms over all, and of the variables or sensing
            points that the transfer reaches the fraction where it is clipped.
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

    @abc.abstractmethod
    def factors(
        self, task_norms: tf.Tensor, transfer_norms: tf.Tensor, epoch: tf.Tensor
    ) -> tf.Tensor:
        """Gives what is left of each transfer gradient."""

    def norms(
        self,
        tape: tf.GradientTape,
        losses: Losses,
        variables: Sequence[tf.Variable],
        epoch: tf.Tensor,
        features: Features,
    ) -> Norms:
        """Computes what the rule weighs, for who watches the training.

        It takes backward passes of its own: what the call computes stays the
        same to the last bit.

        Args:
            tape: As in the call, but persistent.
            losses: As in the call.
            variables: The student's.
            epoch: As in the call.
            features: As in the call.

        Returns:
            The norms: here, and where not said otherwise, of each variable.
        """
        gradients = (
            replicas.summed(tape.gradient(loss, variables))
            for loss in (losses.task, losses.transfer)
        )
        norms = [_norms(_zeros_for_none(each)) for each in gradients]
        return Norms(*norms, self.factors(*norms, epoch))


class Sum(Rule):
    """Adds the losses: one backward pass, nothing clipped."""

    def __call__(
        self, tape, losses, variables, epoch, features, own
    ) -> Gradients:
        return tape.gradient(list(losses), variables)

    def factors(self, task_norms, transfer_norms, epoch):
        return tf.ones_like(transfer_norms)


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
        pairs = list(zip(task, transfer, strict=True))
        both = [
            index
            for index, (main, moved) in enumerate(pairs)
            if main is not None and moved is not None
        ]
        factors, share = {}, 1.0
        if both:
            norms = _norms([task[index] for index in both])
            of_transfer = _norms([transfer[index] for index in both])
            found = self.factors(norms, of_transfer, epoch)
            factors = dict(zip(both, tf.unstack(found), strict=True))
            share = _quotient(found, of_transfer)
        return [
            _add(main, _scaled(moved, factors.get(index, share)))
            for index, (main, moved) in enumerate(pairs)
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

    def factors(self, task_norms, transfer_norms, epoch):
        return _allowed(task_norms, transfer_norms, epoch, self.bound)


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
                norms = tf.unstack(_batch_norms([arriving, transfer]))
                allowed = self.factors(*norms, epoch)
                return arriving + _scaled(transfer, allowed)

            return (tf.identity(feature), tf.identity(feature)), gradient

        return fork(feature)

    def maps(self, features):
        return features.maps if features.forks is None else features.forks

    def factors(self, task_norms, transfer_norms, epoch):
        return _allowed(task_norms, transfer_norms, epoch, self.bound)

    def norms(self, tape, losses, variables, epoch, features):
        """Of each sensing point, where this rule weighs."""
        sides = tape.gradient(list(losses), [features.maps, features.forks])
        return self._at_points(map(_zeros_for_none, sides), epoch)

    def _at_points(self, sides, epoch) -> Norms:
        norms = [_batch_norms(each) for each in sides]
        return Norms(*norms, self.factors(*norms, epoch))

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
        share = 1.0
        if sides:
            norms = self._at_points(zip(*sides, strict=True), epoch)
            share = _quotient(norms.factors, norms.transfer)
        only_transfer = {id(variable) for variable in own}
        return [
            _scaled(gradient, share)
            if id(variable) in only_transfer
            else gradient
            for variable, gradient in zip(variables, found, strict=True)
        ]


class PublishedFormula(_Separate):
    """Scales each variable's transfer gradient by the published formula.

    With `g` the task's gradient of a variable and `t` the transfer's,

        g + decay + sigmoid(tau) * t,  tau = max(1, ||g|| / ||t||).

    The factor lies between 0.73 and 1: this bounds nothing.
    """

    def factors(self, task_norms, transfer_norms, epoch):
        ratios = tf.math.divide_no_nan(task_norms, transfer_norms)
        return tf.sigmoid(tf.maximum(ratios, 1.0))


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
        optimizer: What updates them; built for all variables.
        gradients: One a variable, `None` where no loss reaches it.
        variables: All that train.
        finite: Whether all replicas' losses and gradients are finite, scalar
            boolean; `None` to look at the gradients where that is needed.

    Returns:
        The paths of the others.

    Raises:
        ValueError: If there is no gradient at all.
    """
    pairs = list(zip(gradients, variables, strict=True))
    # Keras's own warning of the others says that a loss is missing.
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


def _require_positive(bound: float) -> float:
    if not bound > 0:
        raise ValueError(
            f"`clip_bound` must be positive. Received: clip_bound={bound}."
        )
    return bound


def _allowed(
    task_norms: tf.Tensor,
    transfer_norms: tf.Tensor,
    epoch: tf.Tensor,
    bound: float,
) -> tf.Tensor:
    """What is left of the transfer's gradients when clipped, 0 to 1."""
    allowed = bound * tf.sigmoid(tf.cast(epoch, task_norms.dtype)) * task_norms
    # Not clip_by_norm: it gives NaN where both norms are zero.
    largest = tf.maximum(transfer_norms, allowed)
    return tf.math.divide_no_nan(allowed, largest)


def _norms(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Norms of tensors, in float32 or float64."""
    dtypes = {gradient.dtype for gradient in gradients}
    dtype = tf.float64 if tf.float64 in dtypes else tf.float32
    gradients = [tf.cast(gradient, dtype) for gradient in gradients]

    # Where squares overflow, as they may in gradients that carry a loss
    # scale, or vanish, tensors are scaled by their largest entry.
    def of_scaled():
        largest = [tf.reduce_max(tf.abs(each)) for each in gradients]
        return tf.stack(
            [
                scale * tf.norm(tf.math.divide_no_nan(each, scale))
                for each, scale in zip(gradients, largest, strict=True)
            ]
        )

    squares = tf.stack([2 * tf.nn.l2_loss(each) for each in gradients])
    in_range = tf.math.is_finite(squares) & (squares > 1e-30)
    return tf.cond(tf.reduce_all(in_range), lambda: tf.sqrt(squares), of_scaled)


def _batch_norms(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """Norms over the whole batch, of which each replica has a part."""
    norms = _norms(gradients)
    if replicas.number() == 1:
        return norms
    parts = replicas.joined(norms[tf.newaxis])
    return _norms(tf.unstack(parts, len(gradients), axis=1))


def _quotient(factors: tf.Tensor, norms: tf.Tensor) -> tf.Tensor:
    """What factors leave of the norm of all gradients together."""
    return tf.math.divide_no_nan(*tf.unstack(_norms([factors * norms, norms])))


def _scaled(
    gradient: tf.Tensor | None, factor: tf.Tensor | float
) -> tf.Tensor | None:
    if gradient is None:
        return None
    return tf.cast(factor, gradient.dtype) * gradient


def _zeros_for_none(gradients: Gradients) -> list[tf.Tensor]:
    # Keras's variables don't take the tape's `unconnected_gradients`.
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
