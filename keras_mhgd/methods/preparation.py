"""Methods that learn something before the student trains."""

from collections.abc import Mapping

import keras
import tensorflow as tf

from keras_mhgd import finiteness, fitting, replicas
from keras_mhgd.features import FeatureExtractor, Taught
from keras_mhgd.gradients import apply
from keras_mhgd.methods.method import Method
from keras_mhgd.methods.ranges import require_not_negative, require_positive


class PreparedMethod(Method):
    """A method with a training of its own, once, before the student's.

    A subclass says what is trained in `trainer`; that it is done is saved
    with the weights.

    Args:
        preparation_epochs: Epochs of that training; 0 leaves it out.
        preparation_learning_rate: Rate of its SGD (Nesterov momentum 0.9),
            > 0.
        weight: Multiplier of the method's terms, >= 0.
    """

    preparation_arguments: tuple[str, ...] = (
        "preparation_epochs",
        "preparation_learning_rate",
    )
    """Names of the arguments that its `artifacts` depend on."""

    def __init__(
        self,
        preparation_epochs: int,
        preparation_learning_rate: float,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        require_not_negative(preparation_epochs=preparation_epochs)
        require_positive(preparation_learning_rate=preparation_learning_rate)
        self.preparation_epochs = preparation_epochs
        self.preparation_learning_rate = preparation_learning_rate

    def build(self, student, teacher):
        super().build(student, teacher)
        self._prepared = self.add_weight(
            name="prepared", initializer="zeros", trainable=False
        )

    @property
    def prepared(self):
        return self.built and (
            not self.preparation_epochs or bool(self._prepared.numpy())
        )

    def trainer(
        self, teacher: FeatureExtractor, student: FeatureExtractor
    ) -> keras.Model:
        """Makes the model whose `fit` is the preparation."""
        raise NotImplementedError(
            f"{type(self).__name__} must implement `trainer`."
        )

    def prepare(
        self,
        teacher,
        student,
        fit=fitting.fit,
        callbacks=None,
        **fit_arguments,
    ):
        trainer = self.trainer(teacher, student)
        trainer.compile(
            keras.optimizers.SGD(
                self.preparation_learning_rate, momentum=0.9, nesterov=True
            )
        )
        # Built within its first step, that step would be traced twice.
        trainer.optimizer.build(trainer.trainable_variables)
        check = finiteness.RequireFinite("preparation_learning_rate")
        fit(
            trainer,
            **fit_arguments,
            epochs=self.preparation_epochs,
            callbacks=[check, *(callbacks or ())],
        )
        self._prepared.assign(1.0)

    def adopt(self, networks: Mapping[str, keras.Model]) -> None:
        """Takes over what was prepared elsewhere, in place of preparing.

        Args:
            networks: All of `artifacts`, by name.
        """
        for name, network in self.artifacts().items():
            network.set_weights(networks[name].get_weights())
        self._prepared.assign(1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "preparation_epochs": self.preparation_epochs,
            "preparation_learning_rate": self.preparation_learning_rate,
        }


class InitializingMethod(PreparedMethod):
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
        super().__init__(
            preparation_epochs, preparation_learning_rate, weight, **kwargs
        )
        if preparation_epochs:
            self.terms = ()

    def build(self, student, teacher):
        super().build(student, teacher)
        if self.preparation_epochs:
            self.trainable = False  # but for the preparation

    def trainer(self, teacher, student):
        return _Initializer(self, teacher, student)

    def prepare(self, teacher, student, **fit_arguments):
        self.trainable = True
        try:
            super().prepare(teacher, student, **fit_arguments)
        finally:
            self.trainable = False


class _Initializer(keras.Model):
    """Trains a student by the terms of a method alone."""

    def __init__(
        self,
        method: InitializingMethod,
        teacher: FeatureExtractor,
        student: FeatureExtractor,
    ):
        super().__init__(name=f"{method.name}_initializer")
        self.method = method
        self.student = student.network
        self._teacher_features = teacher
        self._student_features = student
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
            terms = self.method.shares(student, teacher, y)
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
        batch_size = tf.shape(tf.nest.flatten(student.outputs)[0])[0]
        self._loss_tracker.update_state(replicas.summed(loss), batch_size)
        return self.get_metrics_result()
