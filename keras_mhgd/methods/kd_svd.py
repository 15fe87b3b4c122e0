"""Distills singular vectors of feature maps (KD-SVD).

S. H. Lee, D. H. Kim, B. C. Song, ECCV 2018, arXiv:1807.06819. `KDSVD` is the
paper's method, `KDSVDF` a simpler method that it is compared with.
"""

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.checks import require_known, require_positive
from keras_mhgd.features import Features
from keras_mhgd.features.compression import (
    student_vectors,
    teacher_vectors,
)
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.projection import projected, projections
from keras_mhgd.methods.pieces.reductions import REDUCTIONS


def singular_relation_loss(
    student_vectors: Sequence[tf.Tensor],
    teacher_vectors: Sequence[tf.Tensor],
    bandwidth: float = 8.0,
    reduction: str = "sum",
) -> tf.Tensor:
    """Computes how far the relations of neighbouring points' vectors differ.

    loss = sum over neighbours, samples b and components i and j of
    (R^S - R^T)^2, R_bij = exp(-(v_bi - u_bj)^2 / bandwidth), with v the
    vector of a point and u the vector of the point before.

    Args:
        student_vectors: Two or more, front end first: aligned unit vectors
            `(batch, D)`.
        teacher_vectors: Like `student_vectors`; no gradient flows into them.
        bandwidth: Twice the squared width of the radial basis function, > 0.
        reduction: `"sum"` over samples (authors' code) or their `"mean"`.

    Returns:
        Scalar >= 0, of the vectors' dtype.

    Raises:
        ValueError: If `reduction` is unknown.
    """
    require_known("reduction", reduction, REDUCTIONS)
    losses = []
    for student, teacher in zip(
        itertools.pairwise(student_vectors),
        itertools.pairwise(teacher_vectors),
        strict=True,
    ):
        difference = _relation(*student, bandwidth) - _relation(
            *map(tf.stop_gradient, teacher), bandwidth
        )
        samples = tf.reduce_sum(tf.square(difference), axis=(1, 2))
        losses.append(REDUCTIONS[reduction](samples))
    return tf.add_n(losses)


def singular_vector_loss(
    student_vectors: Sequence[tf.Tensor],
    teacher_vectors: Sequence[tf.Tensor],
    reduction: str = "sum",
) -> tf.Tensor:
    """Computes how far the vectors themselves differ.

    loss = sum over points and samples of ||v^S - v^T||^2.

    Args:
        student_vectors: One for each point: aligned unit vectors `(batch,
            D)`.
        teacher_vectors: Like `student_vectors`; no gradient flows into them.
        reduction: `"sum"` over samples or their `"mean"`.

    Returns:
        Scalar >= 0, of the vectors' dtype.

    Raises:
        ValueError: If `reduction` is unknown.
    """
    require_known("reduction", reduction, REDUCTIONS)
    losses = []
    for student, teacher in zip(student_vectors, teacher_vectors, strict=True):
        difference = student - tf.stop_gradient(teacher)
        samples = tf.reduce_sum(tf.square(difference), axis=1)
        losses.append(REDUCTIONS[reduction](samples))
    return tf.add_n(losses)


def _relation(front: tf.Tensor, back: tf.Tensor, bandwidth: float):
    difference = back[:, :, tf.newaxis] - front[:, tf.newaxis, :]
    return tf.exp(-tf.square(difference) / bandwidth)


class _SingularVectors(Method):
    """Compresses maps to singular vectors; a subclass compares them."""

    needs = Needs(maps=True)

    def __init__(self, reduction, clipping, clip_bound, weight, **kwargs):
        super().__init__(weight=weight, **kwargs)
        require_known("reduction", reduction, REDUCTIONS)
        self.reduction = reduction
        self.clipping = clipping
        self.clip_bound = clip_bound
        self.gradient_rule = gradients.get(clipping, clip_bound)

    def build(self, student, teacher):
        super().build(student, teacher)
        self.projections = projections(student.maps, teacher.maps)

    def compare(self, student, teacher):
        """Computes the loss of a batch, before it is weighted.

        Args:
            student: Unit vectors `(batch, D)` for each sensing point, aligned
                to the teacher's vectors.
            teacher: The teacher's vectors, of the same shapes.

        Returns:
            Scalar >= 0.
        """
        raise NotImplementedError

    def targets(self, teacher):
        return teacher._replace(
            maps=[], vectors=teacher_vectors(teacher), masks=None
        )

    def reduce(self, student, teacher):
        expected = teacher.vectors
        maps = projected(self.projections, student.maps)
        found = student_vectors(maps, expected)
        return (
            Features(None, [], vectors=found),
            Features(None, [], vectors=expected),
        )

    def call(self, student, teacher, labels):
        loss = self.compare(student.vectors, teacher.vectors)
        return {self.terms[0]: self.weight * loss}

    def get_config(self):
        return {
            **super().get_config(),
            "reduction": self.reduction,
            "clipping": self.clipping,
            "clip_bound": self.clip_bound,
        }


@keras.saving.register_keras_serializable(package="keras_mhgd")
class KDSVD(_SingularVectors):
    """Matches relations between singular vectors of neighbouring points.

    Each map is compressed to one vector per sample. The teacher's vector is
    its map's first right singular vector, with the sign that makes the sum of
    its components >= 0. The student's vector is the one of its map's first
    four that is nearest to the teacher's vector, with the sign that makes
    their cosine positive. Then, with v the vector of a point and u the vector
    of the point before,

        loss = weight sum over neighbours, samples and components i and j of
        (R^S - R^T)^2,  R_ij = exp(-(v_i - u_j)^2 / bandwidth),

    and the gradient is limited by the rule `clipping`. See
    `singular_relation_loss`.

    Args:
        bandwidth: Twice the squared width of the radial basis function, > 0.
            The authors' code has 8.
        reduction: `"sum"` over samples (authors' code) or their `"mean"`.
        clipping: How the gradient is combined with the task's:
            `"per_variable"` (authors' code), `"per_feature"`, `"formula"` or
            `None`. See `keras_mhgd.gradients`.
        clip_bound: Multiplier of the norm that `"per_variable"` and
            `"per_feature"` allow, > 0.
        weight: Multiplier of the loss, >= 0. Clipping can cancel its effect.

    Call arguments:
        student: `Features` with two maps or more: `(batch, height, width,
            D)`, `(batch, length, D)` or `(batch, D)`. Vectors `(batch, D)`
            are scaled to unit length.
        teacher: Like `student`; sizes may differ. Where channels differ, a
            trained `Projection` maps the student's to the teacher's.
        labels: Not used.

    Returns:
        `{"kd_svd": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range, or if there is only one
            point.

    Example:
        >>> method = keras_mhgd.methods.KDSVD()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        S. H. Lee, D. H. Kim, B. C. Song, "Self-supervised Knowledge
        Distillation Using Singular Value Decomposition", ECCV 2018,
        arXiv:1807.06819.
    """

    terms = ("kd_svd",)
    needs = Needs(maps=True, least_points=2)

    def __init__(
        self,
        bandwidth: float = 8.0,
        reduction: str = "sum",
        clipping: str | None = "per_variable",
        clip_bound: float = 1.0,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(reduction, clipping, clip_bound, weight, **kwargs)
        require_positive(bandwidth=bandwidth)
        self.bandwidth = bandwidth

    def compare(self, student, teacher):
        return singular_relation_loss(
            student,
            teacher,
            bandwidth=self.bandwidth,
            reduction=self.reduction,
        )

    def get_config(self):
        return {**super().get_config(), "bandwidth": self.bandwidth}


@keras.saving.register_keras_serializable(package="keras_mhgd")
class KDSVDF(_SingularVectors):
    """Matches singular vectors of maps directly.

    Maps become vectors as in `KDSVD`. Then

        loss = weight sum over points and samples of ||v^S - v^T||^2,

    which is 2 (1 - cosine) for each. See `singular_vector_loss`.

    Args:
        reduction: `"sum"` over samples, as in `KDSVD`, or their `"mean"`.
        clipping: As in `KDSVD`.
        clip_bound: As in `KDSVD`.
        weight: Multiplier of the loss, >= 0. Clipping can cancel its effect.

    Call arguments:
        student: `Features`; all its maps are read: `(batch, height, width,
            D)`, `(batch, length, D)` or `(batch, D)`.
        teacher: Like `student`; sizes may differ. Where channels differ, a
            trained `Projection` maps the student's to the teacher's.
        labels: Not used.

    Returns:
        `{"kd_svdf": loss}`, a scalar, float32.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> method = keras_mhgd.methods.KDSVDF()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        S. H. Lee, D. H. Kim, B. C. Song, "Self-supervised Knowledge
        Distillation Using Singular Value Decomposition", ECCV 2018,
        arXiv:1807.06819; results in S. Lee, B. C. Song, BMVC 2019,
        arXiv:1907.02226.
    """

    terms = ("kd_svdf",)

    def __init__(
        self,
        reduction: str = "sum",
        clipping: str | None = "per_variable",
        clip_bound: float = 1.0,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(reduction, clipping, clip_bound, weight, **kwargs)

    def compare(self, student, teacher):
        return singular_vector_loss(student, teacher, reduction=self.reduction)
