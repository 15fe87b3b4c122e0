"""Distills the last map for a student with the teacher's classifier (SimKD).

D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, CVPR 2022,
arXiv:2203.14001.
"""

import keras
import tensorflow as tf
from keras import layers

from keras_mhgd.checks import require_one_or_more
from keras_mhgd.features.graph_reader import ends_in_layers
from keras_mhgd.features.head import graph_origin
from keras_mhgd.features.last_map import Head, require_head
from keras_mhgd.features.layers import is_graph, symbolic_inputs
from keras_mhgd.methods.base.method import Method, Needs
from keras_mhgd.methods.pieces.maps import to_one_size
from keras_mhgd.methods.pieces.targets import student_and_target


def with_teacher_classifier(
    student: keras.Model, teacher: keras.Model, factor: int = 2
) -> keras.Model:
    """Makes a student that classifies by the teacher's classifier.

    The result has the student's layers up to its last map, a projector to the
    teacher's channels, and copies of the teacher's layers from its pooling to
    its output. The copied classifier is frozen. The student's own classifier
    is left out. All are layers of Keras, so the result is saved and exported
    like any other network.

    The projector has convolutions of size 1, 3 and 1, each without bias and
    followed by batch normalisation and ReLU. The first two have D / factor
    channels, with D the teacher's. A student's map that is larger than the
    teacher's is average-pooled to its size first.

    If the teacher flattens its last map, the student's map must be as large at
    least. The publication has only teachers that pool.

    Args:
        student: A functional or sequential network, not changed.
        teacher: Likewise. Its weights are copied as they are now.
        factor: Divides the teacher's channels, >= 1. The publication takes 2,
            4 and 8; a larger factor makes a smaller projector.

    Returns:
        A functional model with the student's name. It shares the student's
        layers.

    Raises:
        ValueError: If `factor` is out of range, or if a network has no last
            map of a known size.

    Example:
        >>> student = keras_mhgd.models.get("resnet_small", (28, 28, 1), 100)
        >>> teacher = keras_mhgd.models.get("resnet_small", (28, 28, 1), 100)
        >>> student = keras_mhgd.methods.with_teacher_classifier(
        ...     student, teacher
        ... )
        >>> student.output_shape
        (None, 100)
    """
    require_one_or_more(factor=factor)
    ours, theirs = _head(student, "student"), _head(teacher, "teacher")
    sizes, target = ours.map.shape[1:3], theirs.map.shape[1:3]
    common = tuple(map(min, sizes, target))
    if theirs.flattens and common != tuple(target):
        raise ValueError(
            "`student` must have a last map at least as large as that of a "
            f"teacher that flattens its own. Received: {tuple(sizes)} and "
            f"{tuple(target)}. Choose another student, or a teacher that ends "
            "in GlobalAveragePooling2D."
        )
    x = ours.map
    if common != tuple(sizes):
        x = layers.AdaptiveAveragePooling2D(common, name="projector_pool")(x)
    channels = theirs.map.shape[-1]
    inside = max(1, channels // factor)
    for number, (width, size) in enumerate(
        ((inside, 1), (inside, 3), (channels, 1)), start=1
    ):
        x = layers.Conv2D(
            width,
            size,
            padding="same",
            use_bias=False,
            # Uniform in +-1 / sqrt(inputs), as in the published code.
            kernel_initializer=keras.initializers.VarianceScaling(
                1 / 3, "fan_in", "uniform"
            ),
            name=f"projector_conv{number}",
        )(x)
        x = layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, name=f"projector_norm{number}"
        )(x)
        x = layers.ReLU(name=f"projector_relu{number}")(x)
    for layer in theirs.layers:
        config = {**layer.get_config(), "name": f"teacher_{layer.name}"}
        copy = type(layer).from_config(config)
        x = copy(x)
        if layer is theirs.classifier:
            copy.set_weights(layer.get_weights())
            copy.trainable = False
    return keras.Model(symbolic_inputs(student), x, name=student.name)


def last_map_loss(student: tf.Tensor, teacher: tf.Tensor) -> tf.Tensor:
    """Computes mean (s - P t)^2, with P the average pooling to the size of s.

    Args:
        student: `(batch, height, width, D)`, any float dtype.
        teacher: The same channels, and the same size or a larger one. No
            gradient flows into it.

    Returns:
        Scalar >= 0, float32 or float64.
    """
    student, teacher = to_one_size(*student_and_target(student, teacher))
    return tf.reduce_mean(tf.math.squared_difference(student, teacher))


@keras.saving.register_keras_serializable(package="keras_mhgd")
class SimKD(Method):
    """Matches the teacher's last map by that of a student with its classifier.

    loss = weight mean (s - P t)^2, with P the average pooling to the size of
    s: see `last_map_loss`. s is the map that `with_teacher_classifier` projects
    to the teacher's channels. The student must be made by that function, so
    the method has no name for `keras_mhgd.methods.get`.

    The published training has no loss of the task. `loss_weights=0.0` of
    `compile` leaves it out, and keeps the metrics of the labels.

    Args:
        weight: Multiplier of the loss, >= 0.

    Call arguments:
        student: `Features` of the student; `last_map` is `(batch, height,
            width, D)`.
        teacher: Like `student`; the map may be larger.
        labels: Not used.

    Returns:
        `{"simkd": loss}`, a scalar, float32.

    Raises:
        ValueError: If `weight` is out of range, or if the student's last map
            doesn't fit the teacher's.

    Example:
        >>> student = keras_mhgd.methods.with_teacher_classifier(
        ...     student, teacher
        ... )
        >>> method = keras_mhgd.methods.SimKD()
        >>> distiller = keras_mhgd.Distiller(student, teacher, method)

    Reference:
        D. Chen, J.-P. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, "Knowledge
        Distillation with the Reused Teacher Classifier", CVPR 2022,
        arXiv:2203.14001.
    """

    terms = ("simkd",)
    needs = Needs(last_map=True)
    spans = "sample"

    def build(self, student, teacher):
        super().build(student, teacher)
        ours, theirs = student.last_map, teacher.last_map
        fits = None not in (*ours[1:], *theirs[1:]) and all(
            mine <= other
            for mine, other in zip(ours[1:3], theirs[1:3], strict=True)
        )
        if not fits or ours[-1] != theirs[-1]:
            raise ValueError(
                "SimKD must get a student with the teacher's classifier: its "
                "last map has the teacher's channels, and is not larger. "
                f"Received: maps {tuple(ours)} and {tuple(theirs)}. Make the "
                "student by keras_mhgd.methods.with_teacher_classifier."
            )

    def call(self, student, teacher, labels):
        loss = last_map_loss(student.last_map, teacher.last_map)
        return {"simkd": self.weight * loss}


def _head(network: keras.Model, what: str) -> Head:
    """Finds how a network ends, in layers that can be used in another one."""
    reachable = is_graph(network) and (
        what == "teacher" or not ends_in_layers(network, pooling=True)
    )
    if not reachable:
        raise ValueError(
            f"`{what}` must be a functional network whose last map is inside "
            f"no other model. Received: {network.name!r} of type "
            f"{type(network).__name__}. Build it of layers."
        )
    head = require_head(network.outputs, graph_origin, network.name)
    layers_only = all(isinstance(each, keras.Layer) for each in head.layers)
    if None in head.map.shape[1:] or not layers_only:
        raise ValueError(
            f"`{what}` must have a last map of a known size, and end in "
            f"layers. Received: {network.name!r}, whose last map has the shape "
            f"{tuple(head.map.shape)}. Give it inputs of a fixed size."
        )
    return head
