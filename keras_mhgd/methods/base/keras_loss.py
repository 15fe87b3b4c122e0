"""Wraps the losses of `keras.distillation` as methods."""

import re
import warnings

import keras
import tensorflow as tf

from keras_mhgd.distribution import replicas
from keras_mhgd.features import Features
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.tasks import SINGLE_LABEL


@keras.saving.register_keras_serializable(package="keras_mhgd")
class KerasLoss(Method):
    """Trains the student by a loss of `keras.distillation`.

    `keras_mhgd.methods.get` wraps a loss of Keras in this class. The loss
    can therefore be passed to a `Distiller` directly, alone or beside other
    methods.

    Args:
        loss: A loss of one of three kinds. A
            `keras.distillation.LogitsDistillation` gets the logits before a
            final softmax of the networks. A `FeatureDistillation` may name
            its layers by path. A `DistillationLoss` of your own gets the
            networks' outputs.
        weight: Multiplier of the loss, >= 0.

    Call arguments:
        student: `Features` of the student.
        teacher: `Features` of the teacher.
        labels: Not used.

    Returns:
        A dict with one scalar, float32. Its key is the name of the loss's
        class in snake case, followed by the name of the student's layer if
        the loss names one.

    Raises:
        TypeError: If `loss` is no loss of `keras.distillation`.

    Example:
        >>> loss = keras.distillation.LogitsDistillation(
        ...     temperature=4.0, loss=keras.losses.KLDivergence()
        ... )
        >>> distiller = keras_mhgd.Distiller(student, teacher, loss)
    """

    def __init__(
        self,
        loss: keras.distillation.DistillationLoss,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        if not isinstance(loss, keras.distillation.DistillationLoss):
            raise TypeError(
                "`loss` must be a loss of keras.distillation. "
                f"Received: {loss!r} of type {type(loss).__name__}. Pass a "
                "LogitsDistillation or a FeatureDistillation."
            )
        self.loss = loss
        self._named = (
            getattr(loss, "student_layer_name", None),
            getattr(loss, "teacher_layer_name", None),
        )
        self._reads_logits = isinstance(
            loss, keras.distillation.LogitsDistillation
        )
        self.needs = Needs(outputs=True)
        if self._reads_logits:
            # The loss takes a softmax: exactly one class must be right.
            self.needs = Needs(logits=True, tasks=(SINGLE_LABEL,))
        elif any(self._named):
            self.needs = Needs(layers=(self._named,))
        if self._reads_logits and loss.loss is keras.losses.kl_divergence:
            warnings.warn(
                "LogitsDistillation(loss='kl_divergence'), the default, "
                "compares raw logits without a softmax (Keras 3.15). Pass "
                "loss=keras.losses.KLDivergence(), or use the method "
                "'soft_logits'.",
                stacklevel=2,
            )
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(loss).__name__).lower()
        layer = (self._named[0] or "").replace("/", "_")
        self.terms = (f"{name}_{layer}" if layer else name,)

    def call(self, student, teacher, labels):
        if (student.weights, student.masks, student.output_masks) != 3 * (
            None,
        ):
            raise ValueError(
                "A loss of keras.distillation takes its mean over all "
                "positions, so that none may be padded or ignored. Received: "
                f"{type(self.loss).__name__} for networks with a mask, or for "
                "labels that leave out positions. Use a method of "
                "keras_mhgd.methods, such as 'soft_logits' or 'fitnet'."
            )
        ours, theirs = (
            self._read(features, layer)
            for features, layer in zip(
                (student, teacher), self._named, strict=True
            )
        )
        loss = self.loss.compute_loss(tf.stop_gradient(theirs), ours)
        if replicas.keras_shares(getattr(self.loss, "loss", None)):
            loss *= replicas.number()  # Keras has divided by this number
        return {self.terms[0]: self.weight * tf.cast(loss, tf.float32)}

    def _read(self, features: Features, layer: str | None) -> tf.Tensor:
        if layer is not None:
            return features.layers[layer]
        return features.logits if self._reads_logits else features.outputs

    def get_config(self):
        loss = keras.saving.serialize_keras_object(self.loss)
        return {**super().get_config(), "loss": loss}

    @classmethod
    def from_config(cls, config):
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})
