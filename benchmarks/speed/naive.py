"""Implements MHGD as in the paper, without the library's faster SVD."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd import linalg
from keras_mhgd.graph import MHAN
from keras_mhgd.linalg.directions import unit
from keras_mhgd.methods import graph_divergence


class NaiveMHGD(keras.Model):
    """Trains with `tf.linalg.svd`, its own gradient and two backward passes.

    Args:
        student: Network to train.
        teacher: Trained network.
        mhan: Attention heads learnt on the teacher.
        points: Layers that both networks have.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        mhan: MHAN,
        points: Sequence[str],
    ):
        super().__init__()
        self.student, self.teacher, self.mhan = student, teacher, mhan
        self._read_student, self._read_teacher = (
            keras.Model(
                network.input,
                [network.output]
                + [network.get_layer(point).output for point in points],
            )
            for network in (student, teacher)
        )
        self.built = True

    def call(self, inputs, training=False):
        return self.student(inputs, training=training)

    def train_step(self, data):
        x, y = data
        _, *teacher_maps = self._read_teacher(x, training=False)
        teacher = [_vectors(each, 1) for each in teacher_maps]
        with tf.GradientTape(persistent=True) as tape:
            outputs, *maps = self._read_student(x, training=True)
            student = [
                linalg.align(_vectors(each, 4), of_teacher[:, :, 0])
                for each, of_teacher in zip(maps, teacher, strict=True)
            ]
            transfer = graph_divergence(
                self.mhan.edges(student),
                self.mhan.edges([each[:, :, 0] for each in teacher]),
            )
            task = self.compute_loss(x, y, outputs)
        variables = self.student.trainable_variables
        gradients = [
            _joined(main, moved)
            for main, moved in zip(
                tape.gradient(task, variables),
                tape.gradient(transfer, variables),
                strict=True,
            )
        ]
        self.optimizer.apply(gradients, variables)
        self._loss_tracker.update_state(task)
        return self.compute_metrics(x, y, outputs)


def _vectors(feature: tf.Tensor, k: int) -> tf.Tensor:
    if feature.shape.rank == 2:
        return unit(feature)[:, :, tf.newaxis]
    matrices = tf.reshape(
        feature, (-1, feature.shape[1] * feature.shape[2], feature.shape[3])
    )
    _, _, right = tf.linalg.svd(matrices, full_matrices=False)
    return right[:, :, :k]


def _joined(task: tf.Tensor, transfer: tf.Tensor | None) -> tf.Tensor:
    if transfer is None:
        return task
    return task + tf.clip_by_norm(transfer, tf.norm(task))
