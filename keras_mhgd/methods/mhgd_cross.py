"""Distills MHGD's graphs with keys of the teacher: our own method."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_mhgd.graph import MHAN
from keras_mhgd.methods.mhgd import MHGD, Variant


@keras.saving.register_keras_serializable(package="keras_mhgd")
class CrossMHGD(MHGD):
    """Transfers graphs in which the student attends to the teacher's samples.

    The method is `MHGD`, except that the keys of the student's graphs are the
    teacher's: G^S = softmax(queries^S keys^T). Each sample of the student is
    placed among the teacher's samples, which are fixed. In `MHGD` all samples
    of the student move at once, and its graphs can agree with the teacher's
    while the features at both ends of an edge are wrong. At the first sensing
    point only the teacher's features are read.

    Four settings also differ from `MHGD`'s. The networks' logits are an
    additional, last sensing point. The logits of attention are scaled. The
    gradient is clipped where it enters the student. The singular vectors have
    fixed signs, as in all measured results of this method. Ablations are in
    docs/evidence.md.

    Args:
        num_heads: Attention heads of each edge, >= 1. See `MHGD` for more on
            this argument and all others.
        preparation_epochs: Epochs of MHAN's training, >= 1.
        preparation_learning_rate: Learning rate of MHAN's SGD, > 0.
        scale_logits: Whether the logits of attention are divided by the square
            root of a head's width.
        clipping: How the gradient is combined with the task's.
        clip_bound: Multiplier of the norm that clipping allows, > 0.
        graph_scope: Which samples a graph joins with several replicas:
            `"global"` or `"replica"`.
        mhan: A trained `MHAN`, used unchanged.
        weight: Multiplier of the loss, >= 0.
        variant: A `Variant`, or a dict of the values that differ from this
            class's default variant, whose `senses_logits` and `fix_signs` are
            true.
        max_head_size: Largest width of MHAN's heads.

    Call arguments:
        student: As in `MHGD`.
        teacher: As in `MHGD`.
        labels: Not used.

    Returns:
        `{"mhgd_cross": loss}`, a scalar, float32.

    Raises:
        TypeError: As `MHGD`.
        ValueError: As `MHGD`.

    Example:
        >>> method = keras_mhgd.methods.CrossMHGD(num_heads=4)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)
    """

    terms = ("mhgd_cross",)

    _variant = Variant(senses_logits=True, fix_signs=True)
    _first_point = 1

    def __init__(
        self,
        num_heads: int = 8,
        preparation_epochs: int = 40,
        preparation_learning_rate: float = 0.1,
        scale_logits: bool = True,
        clipping: str | None = "per_feature",
        clip_bound: float = 0.3,
        graph_scope: str = "global",
        mhan: MHAN | None = None,
        weight: float = 1.0,
        variant: Variant | Mapping[str, Any] | None = None,
        max_head_size: int | None = 512,
        **kwargs,
    ):
        super().__init__(
            num_heads,
            preparation_epochs,
            preparation_learning_rate,
            scale_logits,
            clipping,
            clip_bound,
            graph_scope,
            mhan,
            weight,
            variant,
            max_head_size,
            **kwargs,
        )

    def _edges(self, student, teacher):
        ours, theirs = super()._edges(student, teacher)
        ours = [
            our._replace(keys=their.keys)
            for our, their in zip(ours, theirs, strict=True)
        ]
        return ours, theirs
