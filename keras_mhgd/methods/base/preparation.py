"""Trains what a method must learn before the student trains."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd.checks import require_not_negative, require_positive
from keras_mhgd.distribution import fitting
from keras_mhgd.features import FeatureExtractor, Features
from keras_mhgd.finiteness import RequireFinite

Shares = Callable[[Features, Features, tf.Tensor | None], dict[str, tf.Tensor]]
"""Computes a replica's shares of a method's terms from the features of student
and teacher and the labels."""
Trainer = Callable[[FeatureExtractor, FeatureExtractor, Shares], keras.Model]


class Preparation:
    """Runs a method's own training once, before the student's training.

    A method makes its `Preparation` in its constructor and calls
    `Preparation.build` in its own `build`. A weight of the method records
    whether the preparation is done, and is saved with the method.

    Args:
        epochs: Epochs of the preparation; 0 skips it.
        learning_rate: Learning rate of its SGD (Nesterov momentum 0.9), > 0.

    Attributes:
        networks: Networks that are learnt from the teacher alone, by name.
            They can be saved, and reused by a method of another distiller.
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
        """Defines the training, and makes the weight that records its end.

        Args:
            method: The method that is prepared.
            trainer: Takes the feature extractors of teacher and student and
                the method's `Shares`; gives the model whose `fit` is the
                preparation.
            learns: The layer that is trainable only during the preparation.
            networks: See the attribute. Ignored if `done`: networks that were
                given are not learnt.
            depends_on: See the attribute. Epochs and learning rate need not
                be listed.
            done: Whether there is nothing to learn.
        """
        self._trainer = trainer
        self._learns = learns
        self.networks = {} if done else dict(networks or {})
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
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        **fit_arguments: Any,
    ) -> None:
        """Runs the preparation.

        Args:
            teacher: Extractor of the teacher's predictions and sensing points.
            student: Extractor of the student's predictions and sensing points.
            shares: Computes the method's terms. Only needed by a method whose
                preparation trains the student by these terms.
            fit: Function that is called instead of `keras.Model.fit`, with
                the model to train and the arguments.
            callbacks: Callbacks of the preparation.
            **fit_arguments: The data, as `keras.Model.fit` takes it.

        Raises:
            FloatingPointError: If a loss is not finite.
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
            # If the first step built the optimizer, it would be traced twice.
            trainer.optimizer.build(trainer.trainable_variables)
            check = RequireFinite("preparation_learning_rate")
            fit(
                trainer,
                **fit_arguments,
                epochs=self.epochs,
                callbacks=[check, *(callbacks or ())],
            )
        finally:
            if self._learns is not None:
                self._learns.trainable = False
        self._done.assign(1.0)

    def adopt(self, networks: Mapping[str, keras.Model]) -> None:
        """Copies weights learnt elsewhere instead of running.

        Args:
            networks: A network to copy from for each of the attribute
                `networks`, by name.
        """
        for name, network in self.networks.items():
            network.set_weights(networks[name].get_weights())
        self._done.assign(1.0)

    def get_config(self) -> dict[str, Any]:
        """Gives both arguments under the names that methods use for them."""
        return {
            "preparation_epochs": self.epochs,
            "preparation_learning_rate": self.learning_rate,
        }
