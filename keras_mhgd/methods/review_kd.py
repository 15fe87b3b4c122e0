"""Distills maps that are fused from several stages (knowledge review).

P. Chen, S. Liu, H. Zhao, J. Jia, CVPR 2021, arXiv:2104.09044.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd.checks import check_integer, require_one_or_more
from keras_mhgd.features import Features
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.maps import to_one_size
from keras_mhgd.methods.pieces.targets import student_and_target
from keras_mhgd.models import fuse_batch_normalization

_LEVELS = (4, 2, 1)
_MOST_CHANNELS = 512


def hierarchical_context_loss(
    student_maps: Sequence[tf.Tensor], teacher_maps: Sequence[tf.Tensor]
) -> tf.Tensor:
    """Computes how far maps differ, in detail and in ever larger parts.

    loss = sum over points of the weighted mean, over the levels of a pyramid,
    of mean (P s - P t)^2, with P the average pooling to the level's grid. The
    first grid is that of the map itself, with weight 1. The others are those
    of 4 x 4, 2 x 2 and 1 that are smaller than the map, each with half the
    weight of the grid before.

    Args:
        student_maps: One for each point: `(batch, height, width, D)`, any
            float dtype.
        teacher_maps: Like `student_maps`, with equal, known sizes and equal
            channels. No gradient flows into them.

    Returns:
        Scalar >= 0, float32 or float64.
    """
    losses = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        student, teacher = student_and_target(student, teacher)
        difference = student - teacher
        loss, weight = tf.reduce_mean(tf.square(difference)), 1.0
        total = weight
        for level in _LEVELS:
            if level < min(difference.shape[1:3]):
                # Pooling is linear, so pooling the difference is enough.
                grid = tf.zeros((1, level, level, 1))
                pooled, _ = to_one_size(difference, grid)
                weight /= 2
                loss += weight * tf.reduce_mean(tf.square(pooled))
                total += weight
        losses.append(loss / total)
    return tf.add_n(losses)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class ReviewKD(Method):
    """Matches the teacher's maps by the student's, fused with later maps.

    loss = weight `hierarchical_context_loss` of the student's fused maps and
    the teacher's maps. From the back end to the front, a module for each stage
    fuses the student's map with the fused map of the module before: z x + z' y.
    x is the map after a convolution, and y is the other map, resized. z and z'
    in (0, 1) are the attention that each position pays to x and y. A second
    convolution brings the fused map to the teacher's channels. The embeddings
    stand for the last stage.

    The modules train with the student.

    Args:
        channels: Channels inside the modules, >= 1. `None` takes those of the
            student's embedding, at most 512, as published for CIFAR-100 and
            for ResNet-18 on ImageNet. For MobileNet on ImageNet, 256 is
            published. Steps are shorter with fewer channels.
        weight: Multiplier of the loss, >= 0. The default is that of the
            published code and of its ImageNet training. For CIFAR-100 the
            weight is 0.6 to 8, depending on the pair of networks, and is
            raised from 0 over 20 epochs.

    Call arguments:
        student: `Features`; all its maps are read, `(batch, height, width,
            D)`, and its `embedding`, `(batch, D)`.
        teacher: Like `student`; sizes and channels may differ.
        labels: Not used.

    Returns:
        `{"review_kd": loss}`, a scalar, float32.

    Raises:
        TypeError: If `channels` is not an integer.
        ValueError: If an argument is out of range, or if a sensing point
            gives no map of a known size.

    Example:
        >>> method = keras_mhgd.methods.ReviewKD(weight=5.0)
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        P. Chen, S. Liu, H. Zhao, J. Jia, "Distilling Knowledge via Knowledge
        Review", CVPR 2021, arXiv:2104.09044.
    """

    terms = ("review_kd",)
    needs = Needs(maps=True, embedding=True)

    def __init__(
        self, channels: int | None = None, weight: float = 1.0, **kwargs
    ):
        super().__init__(weight=weight, **kwargs)
        if channels is not None:
            check_integer("channels", channels)
            require_one_or_more(channels=channels)
        self.channels = channels

    def build(self, student, teacher):
        super().build(student, teacher)
        for shape in (*student.maps, *teacher.maps):
            _require_map(shape)
        channels = self.channels
        if channels is None:
            channels = min(_MOST_CHANNELS, student.embedding[-1])
        self.fusions = []
        for source, target in zip(
            _stage_shapes(student), _stage_shapes(teacher), strict=True
        ):
            number = len(self.fusions)
            fusion = _Fusion(
                channels, target, fuses=number > 0, name=f"fusion{number}"
            )
            fusion.build(source)
            self.fusions.append(fusion)

    def call(self, student, teacher, labels):
        fused, later = [], None
        for fusion, x in zip(self.fusions, _stages(student), strict=True):
            output, later = fusion(x, later)
            fused.append(output)
        loss = hierarchical_context_loss(fused, _stages(teacher))
        return {"review_kd": self.weight * loss}

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


class _Fusion(keras.Layer):
    """Fuses a stage with later ones, in the shape of the teacher's stage.

    Normalisation always uses batch statistics, because the layer is only
    called in training.
    """

    def __init__(self, channels, target_shape, fuses, name):
        super().__init__(dtype="float32", name=name)
        self.channels = channels
        self.sizes = target_shape[1:3]
        self.inner, self.inner_norm = _convolution(channels, 1)
        self.attention = None
        if fuses:
            self.attention = keras.layers.Conv2D(
                2, 1, activation="sigmoid", dtype="float32"
            )
        self.outer, self.outer_norm = _convolution(target_shape[-1], 3)

    def build(self, shape):
        inside = (*shape[:-1], self.channels)
        self.inner.build(shape)
        self.inner_norm.build(inside)
        if self.attention is not None:
            self.attention.build((*shape[:-1], 2 * self.channels))
        fused = (None, *self.sizes, self.channels)
        self.outer.build(fused)
        self.outer_norm.build(self.outer.compute_output_shape(fused))
        fuse_batch_normalization(self)

    def call(self, x, later=None):
        x = self.inner_norm(self.inner(x), training=True)
        if self.attention is not None:
            later = _resized(later, x.shape[1:3])
            share = self.attention(tf.concat([x, later], axis=-1))
            x = x * share[..., :1] + later * share[..., 1:]
        x = _resized(x, self.sizes)
        return self.outer_norm(self.outer(x), training=True), x


def _convolution(
    filters: int, size: int
) -> tuple[keras.layers.Conv2D, keras.layers.BatchNormalization]:
    convolution = keras.layers.Conv2D(
        filters,
        size,
        padding="same",
        use_bias=False,
        kernel_initializer="lecun_uniform",
        dtype="float32",
    )
    norm = keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, dtype="float32"
    )
    return convolution, norm


def _resized(x: tf.Tensor, sizes: Sequence[int]) -> tf.Tensor:
    """Resizes to the nearest position: floor(i H / h) for the i-th of h."""
    for axis, size in enumerate(sizes, start=1):
        length = x.shape[axis]
        if size == length:
            continue
        if size % length == 0:
            # The same positions. The gradient of tf.gather takes longer.
            x = tf.repeat(x, size // length, axis=axis)
        else:
            nearest = [i * length // size for i in range(size)]
            x = tf.gather(x, nearest, axis=axis)
    return x


def _stages(features: Features) -> list[tf.Tensor]:
    """Lists the embedding, as a one-position map, and the maps, last first."""
    embedding = features.embedding[:, tf.newaxis, tf.newaxis]
    return [embedding, *reversed(features.maps)]


def _stage_shapes(shapes: Features) -> list[tuple[int | None, ...]]:
    return [(None, 1, 1, shapes.embedding[-1]), *reversed(shapes.maps)]


def _require_map(shape: Sequence[int | None]) -> None:
    if len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            "ReviewKD resizes maps: each sensing point must be a map `(batch, "
            "height, width, D)` of a known size. Received: shape "
            f"{tuple(shape)}. Choose other `sensing_points`, or give the "
            "networks inputs of a fixed size."
        )
