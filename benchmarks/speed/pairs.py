"""Defines the pairs of networks that are timed, and their data."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_mhgd
from training.saved.trained import load_network


@dataclasses.dataclass(frozen=True)
class Pair:
    """Describes a teacher and a student.

    Attributes:
        teacher: The teacher's name.
        student: The student's name.
        points: Sensing points of MHGD.
        trained: File of the trained teacher; random weights if empty.
    """

    teacher: str
    student: str
    points: tuple[str, ...]
    trained: str = ""

    def dataset(self) -> keras_mhgd.data.Dataset:
        """Gives the glyphs, or random images 32 x 32 x 3 of 100 classes."""
        if self.trained:
            return keras_mhgd.data.load("glyphs")
        rng = np.random.default_rng(0)
        x = rng.integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
        y = np.arange(4096, dtype=np.int32) % 100
        names = tuple(str(each) for each in range(100))
        return keras_mhgd.data.Dataset(
            "random", x, y, x[:100], y[:100], names, flip=True, padding=4
        )

    def networks(self, fused: bool = True) -> tuple[keras.Model, keras.Model]:
        """Builds the student and the teacher."""
        keras.utils.set_random_seed(0)
        shape, classes = ((28, 28, 1) if self.trained else (32, 32, 3)), 100
        student = keras_mhgd.models.get(self.student, shape, classes)
        if self.trained:
            teacher = load_network(self.trained)
        else:
            teacher = keras_mhgd.models.get(self.teacher, shape, classes)
        if fused:
            keras_mhgd.models.fuse_batch_normalization(student)
            keras_mhgd.models.fuse_batch_normalization(teacher)
        return student, teacher

    def description(self) -> dict[str, Any]:
        """Describes the networks in plain values."""
        networks = self.networks()
        return {
            "teacher": self.teacher,
            "student": self.student,
            "shape": networks[0].input_shape[1:],
            "weights": [each.count_params() for each in networks],
        }

    def batch(self, batch_size: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Gives a batch of images and labels."""
        return next(iter(self.dataset().train(batch_size)))


PAIRS = {
    "glyphs": Pair(
        "vgg_small",
        "resnet_small",
        ("stage1", "stage2", "stage3", "logits"),
        "saved_models/teachers/vgg_small_glyphs.keras",
    ),
    "wrn": Pair("wrn_22_4", "wrn_10_4", ("stage1", "stage2", "stage3")),
}


def compile_model(model: keras.Model, **arguments) -> None:
    """Compiles for cross-entropy, with the programs' optimizer."""
    model.compile(
        # A low learning rate, since the same batch is used in every step.
        keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **arguments,
    )


def distiller(
    pair: Pair, method: keras_mhgd.methods.Method, points=None, **arguments
) -> keras_mhgd.Distiller:
    """Makes a compiled distiller of fused networks."""
    model = keras_mhgd.Distiller(
        *pair.networks(), method, points or list(pair.points)
    )
    compile_model(model, **arguments)
    return model


def mhan(pair: Pair, teacher: keras.Model) -> keras_mhgd.graph.MHAN:
    """Makes an untrained MHAN, which takes as long as a trained one."""
    return keras_mhgd.graph.MHAN(
        [teacher.get_layer(point).output.shape[-1] for point in pair.points],
        seed=0,
    )


def mhgd(pair: Pair, **arguments) -> keras_mhgd.methods.MHGD:
    """Makes MHGD with an MHAN that needs no preparation."""
    _, teacher = pair.networks()
    return keras_mhgd.methods.MHGD(mhan=mhan(pair, teacher), **arguments)
