"""Defines methods that train beside the task or initialise the student."""

import keras
import tensorflow as tf

from keras_mhgd.distribution import replicas
from keras_mhgd.features import FeatureExtractor, Taught
from keras_mhgd.gradients import apply
from keras_mhgd.methods.base.method import Method
from keras_mhgd.methods.base.preparation import Preparation, Shares


class InitializingMethod(Method):
    """Trains the student beside the task, or initialises it before the task.

    With `preparation_epochs=0` the method's terms are added to the task's
    loss. With 1 or more, as published, the terms alone first train the
    student for that many epochs. The task then trains it without the terms.

    In the second case `terms` is empty, but the method can still be called
    to compute the terms.

    Args:
        preparation_epochs: Epochs of training by the terms alone, before the
            task; 0 trains by the terms and the task together.
        preparation_learning_rate: Learning rate of that training's SGD
            (Nesterov momentum 0.9), > 0.
        weight: Multiplier of the method's terms, >= 0.
    """

    def __init__(
        self,
        preparation_epochs: int = 0,
        preparation_learning_rate: float = 0.01,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        self.preparation = Preparation(
            preparation_epochs, preparation_learning_rate
        )
        if preparation_epochs:
            self.terms = ()

    def build(self, student, teacher):
        super().build(student, teacher)
        self.preparation.build(
            self,
            lambda *arguments: _Initializer(self, *arguments),
            learns=self if self.preparation.epochs else None,
        )

    def get_config(self):
        return {**super().get_config(), **self.preparation.get_config()}


class _Initializer(keras.Model):
    """Trains a student by the terms of a method, without the task."""

    def __init__(
        self,
        method: InitializingMethod,
        teacher: FeatureExtractor,
        student: FeatureExtractor,
        shares: Shares,
    ):
        super().__init__(name=f"{method.name}_initializer")
        self.method = method
        self.student = student.network
        self._teacher_features = teacher
        self._student_features = student
        self._shares = shares
        self.built = True

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(x, Taught):
            x, teacher = x.images, x.features
        else:
            teacher = self._teacher_features(x).without_padding()
            teacher = self.method.targets(teacher)
        with tf.GradientTape() as tape:
            student = self._student_features(x, training=True)
            student = student.without_padding()
            terms = self._shares(student, teacher, y)
            decay = [replicas.share(loss) for loss in self.student.losses]
            loss = tf.add_n(
                [
                    tf.cast(each, tf.float32)
                    for each in (*terms.values(), *decay)
                ]
            )
            scaled = self.optimizer.scale_loss(loss)
        variables = self.student.trainable_variables
        variables = [*variables, *self.method.trainable_variables]
        # Layers behind the last sensing point get no gradient.
        apply(self.optimizer, tape.gradient(scaled, variables), variables)
        batch_size = tf.shape(tf.nest.flatten(student.outputs)[0])[0]
        self._loss_tracker.update_state(replicas.summed(loss), batch_size)
        return self.get_metrics_result()
