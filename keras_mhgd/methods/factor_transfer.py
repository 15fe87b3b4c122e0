"""Paraphrasing complex network: network compression via factor transfer.

J. Kim, S. Park, N. Kwak, NeurIPS 2018, arXiv:1802.04977.
"""

import keras
import tensorflow as tf

from keras_mhgd.choices import require_known
from keras_mhgd.directions import unit
from keras_mhgd.features import without_padding
from keras_mhgd.methods.maps import (
    common_size,
    flatten_positions,
    joint_masks,
    masked_maps,
    mean_of_positions,
    require_positions,
    to_one_size,
)
from keras_mhgd.methods.paraphraser import (
    Paraphraser,
    ParaphraserTrainer,
)
from keras_mhgd.methods.preparation import PreparedMethod
from keras_mhgd.methods.ranges import require_positive
from keras_mhgd.methods.reductions import DISTANCES
from keras_mhgd.methods.targets import student_and_target

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
    (F^S - F^T)^2, F the factor over its Euclidean length.

    Args:
        student: Factors `(batch, height, width, D)`, any float dtype.
        teacher: The same; the larger of two sizes is average-pooled to the
            smaller. No gradient flows into them.
        distance: `"absolute"` (p = 1) or `"squared"` (p = 2).
        per_position: Whether the length is that of the channels at one
            position, instead of the whole factor of a sample.
        mask: `(batch, length)` for factors of sequences that are padded, false
            there: these positions don't count. `None` without padding.

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
class FactorTransfer(PreparedMethod):
    """Matches what a trained encoder keeps of the teacher's last map.

    loss = weight mean |F^S - F^T|, F^T the teacher's factor, given by a
    `Paraphraser` that has learnt to encode and decode the teacher's last
    sensing point before the student trains, F^S the student's, given by a
    translator of the same shape that trains with the student; both over
    their lengths. See `factor_transfer_loss`.

    Args:
        factor: `"paraphraser"` as above, the whole factor of a sample brought
            to unit length; `"pyramid"`, a smaller one, each position brought
            to unit length; or `"attention"`, the mean of squares over the
            channels, of which nothing is learnt.
        rate: The factor's channels over the teacher's, > 0. 0.5 is the
            paper's. See `Paraphraser`.
        distance: `"absolute"` (paper) or `"squared"` differences of factors.
        reconstruction: `"absolute"` (the published code) or `"squared"`
            (paper) differences, in the paraphraser's training. With squares
            the rate of 0.1 is too high where maps have entries well above 1.
            The gradient of absolute ones jumps where a difference changes its
            sign: over many epochs round-off, as of another number of devices,
            grows to differences that can be seen. That of squares doesn't.
        preparation_epochs: Epochs of that training; 0 leaves the paraphraser
            as it is.
        preparation_learning_rate: Rate of its SGD (Nesterov momentum 0.9),
            > 0.
        paraphraser: A trained `Paraphraser` of the same teacher and sensing
            point: it is used as it is and not trained again. `factor` and
            `rate` are its own then.
        weight: Multiplier of the loss, >= 0. The published code's is 500,
            for the mean over a whole factor of unit length, whose entries
            are small; those of a `"pyramid"` are larger.

    Call arguments:
        student: `Features`; its last map `(batch, height, width, D)` is read,
            or `(batch, length, D)` for `"attention"`.
        teacher: The same; size and channels may differ. The larger of two
            factors is average-pooled to the size of the smaller.
        labels: Not used.

    Returns:
        `{"factor_transfer": loss}`, a scalar, float32.

    Raises:
        TypeError: If `paraphraser` is none.
        ValueError: If an argument is out of range, if the last sensing point
            is no map or, for `"attention"`, has one position, or if
            `paraphraser` is for other channels.

    Example:
        >>> method = keras_mhgd.methods.FactorTransfer()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        J. Kim, S. Park, N. Kwak, "Paraphrasing Complex Network: Network
        Compression via Factor Transfer", NeurIPS 2018, arXiv:1802.04977.
    """

    terms = ("factor_transfer",)
    needs = ("maps",)
    preparation_arguments = (
        *PreparedMethod.preparation_arguments,
        "factor",
        "rate",
        "reconstruction",
    )

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
        super().__init__(
            preparation_epochs, preparation_learning_rate, weight, **kwargs
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
        if self._paraphraser_given or self.factor == "attention":
            self._prepared.assign(1.0)
        if self.factor == "attention":
            require_positions([source], [target], type(self).__name__)
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
        self.paraphraser.trainable = False
        self.translator = self.paraphraser.make_encoder(
            source[-1], "translator"
        )

    def trainer(self, teacher, student):
        return ParaphraserTrainer(
            self.paraphraser, teacher, self.reconstruction
        )

    def prepare(self, teacher, student, **fit_arguments):
        if self.factor == "attention":
            return
        self.paraphraser.trainable = True
        try:
            super().prepare(teacher, student, **fit_arguments)
        finally:
            self.paraphraser.trainable = False

    def artifacts(self):
        if self.factor == "attention" or self._paraphraser_given:
            return {}
        return {"paraphraser": self.paraphraser}

    def targets(self, teacher):
        # Not the factor: a cache is filled before the paraphraser trains.
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
        # No paraphraser: `build` makes one like it, and its weights are
        # saved and loaded as all weights are.
        return {
            **super().get_config(),
            "factor": self.factor,
            "rate": self.rate,
            "distance": self.distance,
            "reconstruction": self.reconstruction,
        }
