"""Methods that train beside the task, or initialise the student."""

import keras
import tensorflow as tf

from keras_mhgd.distribution import replicas
from keras_mhgd.features import FeatureExtractor, Taught
from keras_mhgd.gradients import apply
from keras_mhgd.methods.base.method import Method
from keras_mhgd.methods.base.preparation import Preparation, Shares


class InitializingMethod(Method):
    """A method that trains beside the task, or initialises the student.

    With `preparation_epochs=0` its terms are added to the task's loss. With
    more, as published, they train the student alone for so many epochs, and
    then the task does without them.

    It has no `terms` then, though it can still be called for them.

    Args:
        preparation_epochs: Epochs that the terms train the student for,
            before the task; 0 to train by both together.
        preparation_learning_rate: Rate of that training's SGD (Nesterov
            momentum 0.9), > 0.
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
    """Trains a student by the terms of a method alone."""

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
        # The layers behind the last sensing point get none.
        apply(self.optimizer, tape.gradient(scaled, variables), variables)
        batch_size = tf.shape(student.outputs)[0]
        self._loss_tracker.update_state(replicas.summed(loss), batch_size)
        return self.get_metrics_result()
