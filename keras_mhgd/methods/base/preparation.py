"""What a method learns before the student trains."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.checks import require_not_negative, require_positive
from keras_mhgd.distribution import fitting
from keras_mhgd.features import FeatureExtractor, Features

Shares = Callable[[Features, Features, tf.Tensor | None], dict[str, tf.Tensor]]
"""Computes a replica's shares of a method's terms from the features of student
and teacher and the labels."""
Trainer = Callable[[FeatureExtractor, FeatureExtractor, Shares], keras.Model]


class Preparation:
    """A training of a method's own, once, before the student's.

    A method makes one where it is made, and says what is trained when it is
    built. Whether it is done is a weight of the method, saved with it.

    Args:
        epochs: Epochs of that training; 0 leaves it out.
        learning_rate: Rate of its SGD (Nesterov momentum 0.9), > 0.

    Attributes:
        networks: What is learnt from the teacher alone, by name: it can be
            kept and taken over by others.
        depends_on: The method's arguments that `networks` depend on, by name.
    """

    def __init__(
        self,
        epochs: int,
        learning_rate: float,
    ):
        require_not_negative(preparation_epochs=epochs)
        require_positive(preparation_learning_rate=learning_rate)
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.networks: dict[str, keras.Model] = {}
        self.depends_on: dict[str, Any] = {}

    def build(
        self,
        method: keras.Layer,
        trainer: Trainer,
        learns: keras.Layer | None = None,
        networks: Mapping[str, keras.Model] | None = None,
        depends_on: Mapping[str, Any] | None = None,
        done: bool = False,
    ) -> None:
        """Says what is learnt.

        Args:
            method: Whose preparation it is.
            trainer: Makes, from the extractors of teacher and student and
                the method's `Shares`, the model whose `fit` is the
                preparation.
            learns: What is trainable only while it runs.
            networks: See the attribute.
            depends_on: See the attribute; beside epochs and learning rate.
            done: Whether there is nothing to learn.
        """
        self._trainer = trainer
        self._learns = learns
        self.networks = dict(networks or {})
        self.depends_on = dict(depends_on or {})
        self._done = method.add_weight(
            name="prepared",
            initializer="ones" if done else "zeros",
            trainable=False,
        )
        if learns is not None:
            learns.trainable = False

    @property
    def done(self) -> bool:
        """Whether the student can train: nothing is left to learn."""
        if not self.epochs:
            return True
        return hasattr(self, "_done") and bool(self._done.numpy())

    def run(
        self,
        teacher: FeatureExtractor,
        student: FeatureExtractor,
        shares: Shares | None = None,
        fit: Callable[..., Any] = fitting.fit,
        **fit_arguments: Any,
    ) -> None:
        """Trains.

        Args:
            teacher: The teacher's predictions and sensing points.
            student: The student's.
            shares: Computes the method's terms; only needed by a method that
                trains by these.
            fit: What is called in the place of `keras.Model.fit`, with the
                model that is trained and the arguments.
            **fit_arguments: The data, as `keras.Model.fit` takes it.
        """
        if self._learns is not None:
            self._learns.trainable = True
        try:
            trainer = self._trainer(teacher, student, shares)
            trainer.compile(
                keras.optimizers.SGD(
                    self.learning_rate, momentum=0.9, nesterov=True
                )
            )
            # Built within its first step, that would be traced twice.
            trainer.optimizer.build(trainer.trainable_variables)
            fit(trainer, **fit_arguments, epochs=self.epochs)
        finally:
            if self._learns is not None:
                self._learns.trainable = False
        self._done.assign(1.0)

    def adopt(self, networks: Mapping[str, keras.Model]) -> None:
        """Takes over what was learnt elsewhere.

        Args:
            networks: All of `networks`, by name.
        """
        for name, network in self.networks.items():
            network.set_weights(networks[name].get_weights())
        self._done.assign(1.0)

    def get_config(self) -> dict[str, Any]:
        """The two arguments by the names that methods have for them."""
        return {
            "preparation_epochs": self.epochs,
            "preparation_learning_rate": self.learning_rate,
        }
