"""Distills encodings of the last feature map (factor transfer).

J. Kim, S. Park, N. Kwak, NeurIPS 2018, arXiv:1802.04977.
"""

import keras
import tensorflow as tf

from keras_mhgd.checks import require_known, require_positive
from keras_mhgd.features import without_padding
from keras_mhgd.linalg.directions import unit
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.base.preparation import Preparation
from keras_mhgd.methods.pieces.maps import (
    common_size,
    flatten_positions,
    joint_masks,
    masked_maps,
    mean_of_positions,
    require_positions,
    to_one_size,
)
from keras_mhgd.methods.pieces.paraphraser import (
    Paraphraser,
    ParaphraserTrainer,
)
from keras_mhgd.methods.pieces.reductions import DISTANCES
from keras_mhgd.methods.pieces.targets import student_and_target

_FACTORS = ("paraphraser", "pyramid", "attention")


def factor_transfer_loss(
    student: tf.Tensor,
    teacher: tf.Tensor,
    distance: str = "absolute",
    per_position: bool = False,
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Computes how far the directions of factors differ.

    loss = mean over samples, positions and channels of |F^S - F^T| or of
    (F^S - F^T)^2, with F the factor divided by its Euclidean length.

    Args:
        student: Factors `(batch, height, width, D)`, any float dtype.
        teacher: Like `student`; the larger of two sizes is average-pooled to
            the smaller. No gradient flows into them.
        distance: `"absolute"` (p = 1) or `"squared"` (p = 2).
        per_position: Whether the length is taken over the channels of each
            position, instead of over the whole factor of a sample.
        mask: `(batch, length)` for factors of padded sequences, false at
            padded positions, which don't count. `None` without padding.

    Returns:
        Scalar >= 0, float32 or float64.

    Raises:
        ValueError: If `distance` is unknown.
    """
    require_known("distance", distance, DISTANCES)
    student, teacher = to_one_size(*student_and_target(student, teacher))
    axis = -1 if per_position else (1, 2)
    student, teacher = (
        unit(flatten_positions(without_padding(each, mask)), axis)
        for each in (student, teacher)
    )
    return mean_of_positions(DISTANCES[distance](student - teacher), mask)


def _last(features):
    """Keeps the last map, and its mask."""
    masks = features.masks
    return features._replace(
        maps=features.maps[-1:], masks=masks and masks[-1:]
    )


@keras.saving.register_keras_serializable(package="keras_mhgd")
class FactorTransfer(Method):
    """Matches learnt encodings, called factors, of both networks' last maps.

    loss = weight mean |F^S - F^T|, with both factors divided by their lengths.
    The teacher's factor F^T comes from a `Paraphraser`. The paraphraser learns
    to encode and decode the teacher's last sensing point before the student
    trains. The student's factor F^S comes from a translator, which has the
    layers of the paraphraser's encoder and trains with the student. See
    `factor_transfer_loss`.

    Args:
        factor: `"paraphraser"`: as above, with the whole factor of a sample
            scaled to unit length. `"pyramid"`: a smaller factor, with each
            position scaled to unit length. `"attention"`: the mean of squares
            over the channels; nothing is learnt.
        rate: The factor's channels divided by the teacher's, > 0. The paper's
            is 0.5. See `Paraphraser`.
        distance: `"absolute"` (paper) or `"squared"` differences of factors.
        reconstruction: `"absolute"` (the published code) or `"squared"`
            (paper) differences, in the paraphraser's training. With squares,
            the learning rate of 0.1 is too high if maps have entries well
            above 1. The gradient of absolute differences jumps where a
            difference changes its sign. Over many epochs, round-off, for
            example from another number of devices, then grows to visible
            differences. The gradient of squares has no such jumps.
        preparation_epochs: Epochs of the paraphraser's training; 0 leaves its
            weights unchanged.
        preparation_learning_rate: Learning rate of that training's SGD
            (Nesterov momentum 0.9), > 0.
        paraphraser: A trained `Paraphraser` for the same teacher and sensing
            point. It is used unchanged and not trained again. `factor` and
            `rate` are then taken from it.
        weight: Multiplier of the loss, >= 0. The published code's is 500,
            for the mean over a whole factor of unit length, whose entries
            are small. The entries of a `"pyramid"` factor are larger.

    Call arguments:
        student: `Features`; its last map `(batch, height, width, D)` is read,
            or `(batch, length, D)` for `"attention"`.
        teacher: Like `student`; size and channels may differ. The larger of two
            factors is average-pooled to the size of the smaller.
        labels: Not used.

    Returns:
        `{"factor_transfer": loss}`, a scalar, float32.

    Raises:
        TypeError: If `paraphraser` is no `Paraphraser`.
        ValueError: If an argument is out of range, if the last sensing point
            is no map or, for `"attention"`, has only one position, or if
            `paraphraser` is for other channels.

    Example:
        >>> method = keras_mhgd.methods.FactorTransfer()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        J. Kim, S. Park, N. Kwak, "Paraphrasing Complex Network: Network
        Compression via Factor Transfer", NeurIPS 2018, arXiv:1802.04977.
    """

    terms = ("factor_transfer",)
    needs = Needs(maps=True)

    def __init__(
        self,
        factor: str = "paraphraser",
        rate: float = 0.5,
        distance: str = "absolute",
        reconstruction: str = "absolute",
        preparation_epochs: int = 30,
        preparation_learning_rate: float = 0.1,
        paraphraser: Paraphraser | None = None,
        weight: float = 500.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        self.preparation = Preparation(
            preparation_epochs,
            preparation_learning_rate,
        )
        require_known("factor", factor, _FACTORS)
        require_positive(rate=rate)
        require_known("distance", distance, DISTANCES)
        require_known("reconstruction", reconstruction, DISTANCES)
        if paraphraser is not None:
            if not isinstance(paraphraser, Paraphraser):
                raise TypeError(
                    "`paraphraser` must be a Paraphraser of "
                    "keras_mhgd.methods.factor_transfer. Received: "
                    f"{paraphraser!r} of type {type(paraphraser).__name__}. "
                    "Load a saved one with keras.saving.load_model."
                )
            factor = "pyramid" if paraphraser.pyramid else "paraphraser"
            rate = paraphraser.rate
        self.factor = factor
        self.rate = rate
        self.distance = distance
        self.reconstruction = reconstruction
        self.paraphraser = paraphraser
        self._paraphraser_given = paraphraser is not None

    def build(self, student, teacher):
        super().build(student, teacher)
        source, target = student.maps[-1], teacher.maps[-1]
        if self.factor == "attention":
            require_positions([source], [target], type(self).__name__)
            self.preparation.build(self, self._trainer, done=True)
            return
        if len(source) != 4 or len(target) != 4:
            raise ValueError(
                "FactorTransfer convolves: the last sensing point must be "
                "`maps (batch, height, width, D)` in both networks. Received: "
                f"shapes {tuple(source)} and {tuple(target)}. Choose another "
                'last one of `sensing_points`, or factor="attention".'
            )
        common_size(source, target)
        if self.paraphraser is None:
            self.paraphraser = Paraphraser(
                target[-1], self.rate, pyramid=self.factor == "pyramid"
            )
        elif self.paraphraser.channels != target[-1]:
            raise ValueError(
                "`paraphraser` must have been trained at the same sensing "
                "point. Received: one for "
                f"{self.paraphraser.channels} channels, and a teacher with "
                f"{target[-1]}. Leave it out to train a new one."
            )
        self.preparation.build(
            self,
            self._trainer,
            learns=self.paraphraser,
            networks={"paraphraser": self.paraphraser},
            depends_on={
                "factor": self.factor,
                "rate": self.rate,
                "reconstruction": self.reconstruction,
            },
            done=self._paraphraser_given,
        )
        self.translator = self.paraphraser.make_encoder(
            source[-1], "translator"
        )

    def _trainer(self, teacher, *_):
        return ParaphraserTrainer(
            self.paraphraser, teacher, self.reconstruction
        )

    def targets(self, teacher):
        # A teacher cache is filled before the paraphraser trains, so it must
        # hold the map instead of the factor.
        return _last(teacher)

    def call(self, student, teacher, labels):
        source, target = student.maps[-1], teacher.maps[-1]
        mask = None
        if self.factor == "attention":
            masks = joint_masks(
                masked_maps(_last(student)),
                masked_maps(_last(teacher)),
                type(self).__name__,
            )
            mask = masks and masks[0]
            source, target = (
                tf.reduce_mean(tf.square(each), axis=-1, keepdims=True)
                for each in to_one_size(source, target)
            )
        else:
            source, target = self.translator(source), self.paraphraser(target)
        loss = factor_transfer_loss(
            source,
            target,
            self.distance,
            per_position=self.factor == "pyramid",
            mask=mask,
        )
        return {"factor_transfer": self.weight * loss}

    def get_config(self):
        # The paraphraser is left out: `build` makes an equal one, whose weights
        # are saved and loaded with all others.
        return {
            **super().get_config(),
            **self.preparation.get_config(),
            "factor": self.factor,
            "rate": self.rate,
            "distance": self.distance,
            "reconstruction": self.reconstruction,
        }
