"""Distills the logits of cells of several scales (SDD).

S. Wei, C. Luo, Y. Luo, CVPR 2024, arXiv:2403.13512.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.checks import (
    check_integer,
    require_known,
    require_not_negative,
    require_one_or_more,
)
from keras_mhgd.features import Features
from keras_mhgd.methods.base.logit_method import LogitMethod, inner_method
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.dkd import DKD
from keras_mhgd.methods.nkd import NKD
from keras_mhgd.methods.pieces.maps import to_grid
from keras_mhgd.methods.soft_logits import SoftLogits
from keras_mhgd.tasks import SINGLE_LABEL

_METHODS: dict[str, type[LogitMethod]] = {
    "soft_logits": SoftLogits,
    "dkd": DKD,
    "nkd": NKD,
}


def cell_logits(logit_map: tf.Tensor, scales: Sequence[int]) -> tf.Tensor:
    """Computes the logits of the cells of several scales.

    A scale m divides a map into m x m cells. The logits of a cell are the mean
    of the logits of its positions. The cells are those of adaptive average
    pooling: see `to_grid`.

    Args:
        logit_map: `(batch, height, width, classes)`, of a known size.
        scales: The numbers m.

    Returns:
        `(batch, cells, classes)`: the cells of the first scale, row by row,
        then those of the next. float32 or float64.
    """
    classes = logit_map.shape[-1]
    return tf.concat(
        [
            tf.reshape(to_grid(logit_map, scale), (-1, scale**2, classes))
            for scale in scales
        ],
        axis=1,
    )


def cell_weights(
    logit_map: tf.Tensor, scales: Sequence[int], complementary: float = 2.0
) -> tf.Tensor:
    """Computes the weight of each cell from the teacher's logit map.

    A cell is consistent if its class is the class of the whole map, and has
    the weight 1. Other cells are complementary. A class is the position of the
    largest logit.

    Args:
        logit_map: The teacher's, `(batch, height, width, classes)`.
        scales: As in `cell_logits`.
        complementary: Weight of complementary cells.

    Returns:
        `(batch, cells)`, of the dtype of `cell_logits`.
    """
    cells = cell_logits(logit_map, scales)
    whole = tf.argmax(cell_logits(logit_map, [1]), axis=-1)
    consistent = tf.argmax(cells, axis=-1) == whole
    return tf.where(consistent, 1.0, tf.cast(complementary, cells.dtype))


@keras.saving.register_keras_serializable(package="keras_mhgd")
class SDD(Method):
    """Matches predictions for cells of the last map, at several scales.

    loss = weight [mean over samples and cells of w l], with l the loss of the
    inner `method` for the logits of a cell: see `cell_logits`. w is 1 for a
    cell whose class, in the teacher, is that of the whole image, and
    `complementary` for the others: see `cell_weights`.

    The logits of a cell come from each network's own classifier. So a network
    must end in a global average pooling and a dense layer, as in the
    publication. A dense layer behind `Flatten` is taken as well, which is
    ours: each position then has weights of its own. The cells' logits are
    farther apart than behind a pooling, so the loss is larger, and a smaller
    `weight` may be right. See `keras_mhgd.features.last_map.read_last_map`.

    The publication takes the sum over cells, its code the mean. The code also
    goes by the labels: a cell is complementary if it is right where the whole
    image is wrong, or the other way round. With a teacher that is right, both
    are the same.

    Args:
        method: The method that compares the logits of a cell: `"soft_logits"`,
            `"dkd"`, `"nkd"`, or a method on logits whose terms are all means
            over samples, or the serialized form of one. Its `weight`
            multiplies the loss too.
        scales: The numbers m of m x m cells. The publication takes 1, 2 and 4
            for networks of different kinds, and 1 and 2 for those of one kind.
        complementary: Weight of complementary cells, >= 0.
        weight: Multiplier of the loss, >= 0.

    Call arguments:
        student: `Features` of the student; `logit_map` is `(batch, height,
            width, classes)`.
        teacher: Like `student`; height and width may differ.
        labels: Class numbers `(batch,)`. Only used by an inner method that
            reads labels.

    Returns:
        A dict with the terms of the inner method. Their names start with
        `sdd_`.

    Raises:
        TypeError: If `method` is no such method.
        ValueError: If an argument is out of range, the classes differ, or a
            map has no known size.

    Example:
        >>> inner = keras_mhgd.methods.DKD(beta=2.0)
        >>> method = keras_mhgd.methods.SDD(inner, scales=(1, 2))
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        S. Wei, C. Luo, Y. Luo, "Scaled Decoupled Distillation", CVPR 2024,
        arXiv:2403.13512.
    """

    needs = Needs(logit_map=True, tasks=(SINGLE_LABEL,))

    def __init__(
        self,
        method: str | LogitMethod | dict[str, Any] = "soft_logits",
        scales: Sequence[int] = (1, 2, 4),
        complementary: float = 2.0,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_not_negative(complementary=complementary)
        if isinstance(method, str):
            require_known("method", method, _METHODS)
            method = _METHODS[method](name=method)
        form = f"one of {', '.join(_METHODS)}, or a method on logits"
        self.method = inner_method(method, form, every_term=True)
        self.scales = _checked(scales)
        self.complementary = complementary
        self.terms = tuple(f"sdd_{term}" for term in self.method.terms)
        self.spans = self.method.spans
        labels = self.method.needs.labels
        self.needs = self.needs._replace(labels=labels)

    def build(self, student, teacher):
        super().build(student, teacher)
        for features in (student, teacher):
            _require_size(features.logit_map)
        self.method.build(
            *(
                Features(None, [], logits=(None, each.logit_map[-1]))
                for each in (student, teacher)
            )
        )

    def call(self, student, teacher, labels):
        weights = cell_weights(
            teacher.logit_map, self.scales, self.complementary
        )
        weights = tf.stop_gradient(
            tf.cast(tf.reshape(weights, [-1]), "float32")
        )
        ours, theirs = (
            _rows(cell_logits(each.logit_map, self.scales))
            for each in (student, teacher)
        )
        if labels is not None:
            cells = sum(scale**2 for scale in self.scales)
            labels = tf.repeat(labels, cells, axis=0)
        cells = Features(None, [], logits=ours, weights=tf.ones_like(weights))
        counted = self.method.row_weights(cells, labels)
        found = self.method.call(
            cells._replace(weights=weights),
            Features(None, [], logits=theirs),
            labels,
        )
        # The inner method divides by the sum of the weights, but the loss is
        # divided by the number of cells that count.
        scale = self.weight * tf.math.divide_no_nan(
            tf.reduce_sum(weights * counted), tf.reduce_sum(counted)
        )
        return {
            f"sdd_{term}": tf.cast(scale, value.dtype) * value
            for term, value in found.items()
        }

    def get_config(self):
        return {
            **super().get_config(),
            "method": keras.saving.serialize_keras_object(self.method),
            "scales": list(self.scales),
            "complementary": self.complementary,
        }


def _checked(scales: Any) -> tuple[int, ...]:
    if not isinstance(scales, (list, tuple)) or not scales:
        raise ValueError(
            "`scales` must be one or more numbers of cells along an axis, such "
            f"as (1, 2, 4). Received: scales={scales!r}. Pass a list."
        )
    for scale in scales:
        require_one_or_more(scales=check_integer("scales", scale))
    return tuple(scales)


def _require_size(shape: Sequence[int | None]) -> None:
    if len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            "SDD divides the last map into cells: it must be a map `(batch, "
            "height, width, D)` of a known size. Received: logits of shape "
            f"{tuple(shape)}. Give the networks inputs of a fixed size."
        )


def _rows(cells: tf.Tensor) -> tf.Tensor:
    return tf.reshape(cells, (-1, cells.shape[-1]))
