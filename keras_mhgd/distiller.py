"""The model that trains a student from a frozen teacher."""

import functools
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_mhgd import finiteness, fitting, methods, replicas
from keras_mhgd.choices import require_known
from keras_mhgd.export.network import in_inference_mode
from keras_mhgd.features import (
    FeatureExtractor,
    Features,
    SensingPoints,
    Taught,
    input_shapes,
    logits_end,
    pair,
    require_network,
)
from keras_mhgd.gradients import SUMMARY, Losses


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Distiller(keras.Model):
    """Trains a student on its task and on what a frozen teacher shows.

    One step: one forward pass of the teacher, one of the student, the losses

        loss = task_loss + the student's own `losses` + the method's terms,

    and one update of the student, with the gradients joined as the method
    says. `fit` prepares the method first if it needs it. `evaluate` and
    `predict` are the student's: the teacher doesn't run and no weight moves.

    Args:
        student: Network to train, input to class scores: functional,
            sequential, or subclassed and built.
        teacher: Trained network with the same input and classes. It runs in
            inference mode; its `trainable` flag is left as it is. Only a
            method of mutual learning trains it.
        method: A name of `keras_mhgd.methods.names()`, a `Method`, a loss of
            `keras.distillation`, or several: a list, or names joined by `+`.
        sensing_points: Where features are read: `None` finds and pairs the
            ends of stages or blocks; or layer names, or (student layer,
            teacher layer) pairs, front end first. See
            `keras_mhgd.features.pair`. A method that reads no maps leaves
            them unused.
        name: Name of the model.
        gradient_norms: Whether training measures, beside the losses, the
            norms `task_gradient` and `transfer_gradient`, and the share that
            is `clipped`: see `keras_mhgd.gradients.Norms`. It takes backward
            passes of its own; the weights stay the same.

    Raises:
        TypeError: If a network is no built Keras model.
        ValueError: If the networks, the sensing points or the method don't
            fit each other.

    Example:
        >>> distiller = keras_mhgd.Distiller(student, teacher, method="mhgd")
        >>> distiller.compile(
        ...     optimizer="sgd",
        ...     loss=keras.losses.SparseCategoricalCrossentropy(
        ...         from_logits=True
        ...     ),
        ...     metrics=["accuracy"],
        ... )
        >>> history = distiller.fit(images, labels, epochs=2, verbose=0)
        >>> list(history.history)
        ['accuracy', 'loss', 'mhgd', 'task_loss']
        >>> distiller.student.save("student.keras")
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        method: methods.Identifier | Sequence[methods.Identifier] = "mhgd",
        sensing_points: SensingPoints = None,
        name: str = "distiller",
        gradient_norms: bool = False,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        method = methods.get(method)
        if method.built:
            raise ValueError(
                "`method` must not belong to another distiller. Received: "
                f"{method!r}, which does. Make a new one; what it learnt from "
                "the teacher can be passed on, as in MHGD(mhan=method.mhan)."
            )
        _require_same_inputs(student, teacher)
        if method.teacher_learns and not teacher.trainable_variables:
            raise ValueError(
                f"`teacher` must be trainable, since {type(method).__name__} "
                f"trains it along. Received: {teacher.name!r}, which is "
                "frozen. Set teacher.trainable = True."
            )
        points = []
        if method.reads_points:
            points = pair(
                student,
                teacher,
                sensing_points,
                method.min_points,
                method.senses_logits,
            )
        others = [need for need in method.needs if isinstance(need, tuple)]
        self.student = student
        self.teacher = teacher
        self.method = method
        self.sensing_points = tuple(points)
        self._tell_points = bool(points) and sensing_points is None
        # Epochs since transfer began: some methods' strength depends on it.
        self._epoch = self.add_weight(
            name="epoch", initializer="zeros", trainable=False, dtype="float32"
        )
        split = method.gradient_rule.split
        logits = [
            [logits_end(network)] if points and method.senses_logits else []
            for network in (student, teacher)
        ]
        self._student_features = FeatureExtractor(
            student,
            [point for point, _ in points],
            method.needs,
            [layer for layer, _ in others if layer],
            split=split and functools.partial(split, epoch=self._epoch),
            logits=logits[0],
        )
        self._teacher_features = FeatureExtractor(
            teacher,
            [point for _, point in points],
            method.needs,
            [layer for _, layer in others if layer],
            require_finite=True,
            logits=logits[1],
        )
        shapes = self._student_features.shapes, self._teacher_features.shapes
        _require_same_classes(*shapes)
        method.build(*shapes)
        self._skipped_steps = keras.metrics.Sum(name="skipped_steps")
        self._task_loss = keras.metrics.Mean(name="task_loss")
        self._terms = [keras.metrics.Mean(name=term) for term in method.terms]
        self.gradient_norms = gradient_norms
        self._norms = [
            keras.metrics.Mean(name=name) for name in SUMMARY if gradient_norms
        ]
        self.built = True

    def call(self, inputs, training=False):
        if isinstance(inputs, Taught):
            inputs = inputs.images
        return self.student(inputs, training=training)

    @property
    def trainable_variables(self):
        """What training changes: the teacher only if the method says so."""
        return [
            variable
            for part in self._learning
            for variable in part.trainable_variables
        ]

    @property
    def trainable_weights(self):
        return self.trainable_variables

    @property
    def losses(self):
        """The own losses of what learns, such as weight decay."""
        return [loss for part in self._learning for loss in part.losses]

    @property
    def _learning(self) -> list[keras.Layer]:
        peers = [self.teacher] if self.method.teacher_learns else []
        return [self.student, *peers, self.method]

    @property
    def resumable_variables(self) -> list[keras.Variable]:
        """All state of a training but the optimizer's."""
        parts = [part.variables for part in self._learning]
        return [*(each for part in parts for each in part), self._epoch]

    def compile(
        self, optimizer="rmsprop", loss=None, *, nonfinite="raise", **kwargs
    ):
        """Configures the training as `keras.Model.compile` does.

        Args:
            optimizer: As in Keras.
            loss: The student's task loss.
            nonfinite: What becomes of a step whose losses or gradients are
                NaN or infinite. `"raise"` ends the training there and names
                the term or layer, but leaves gradients that overflow to a
                `LossScaleOptimizer`. `"skip"` undoes the step: weights,
                statistics, optimizer and metrics are those of before, save
                that a `LossScaleOptimizer` lowers its scale. The epoch's
                `skipped_steps` are a metric then, and an epoch of nothing
                else raises `FloatingPointError`. A step holds another copy of
                weights and optimizer for that. Preparations and teacher
                caches always raise.
            **kwargs: Others of `keras.Model.compile`.

        Raises:
            ValueError: If there is no `loss`, or `nonfinite` is unknown.
        """
        require_known("nonfinite", nonfinite, ["raise", "skip"])
        if loss is None:
            raise ValueError(
                "`loss` must be the student's task loss, such as "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True)."
                " Received: loss=None."
            )
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        self.nonfinite = nonfinite
        # `compile` makes loss objects that take a mean of what isn't one.
        self._keras_shares = all(
            replicas.keras_shares(each)
            for each in keras.tree.flatten(loss)
            if isinstance(each, keras.losses.Loss)
        )

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, "nonfinite": self.nonfinite}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def prepare(self, x=None, y=None, verbose="auto", **fit_arguments):
        """Lets the method learn what it needs before the student trains.

        `fit` does this itself where it has not been done.

        Args:
            x: Training images, as `fit` takes them.
            y: Labels, as `fit` takes them.
            verbose: As in `fit`.
            **fit_arguments: Others of `fit` that describe the data:
                `batch_size`, `shuffle`, `steps_per_epoch`; `callbacks`; and
                `fit`, called in the place of `keras.Model.fit` with the model
                that is trained and all arguments.
        """
        if verbose:
            name = type(self.method).__name__
            print(f"Preparing {name} on {self.teacher.name!r}.")
        with self.distribute_strategy.scope():
            self.method.prepare(
                self._teacher_features,
                self._student_features,
                x=x,
                y=y,
                verbose=verbose,
                **fit_arguments,
            )

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        steps_per_epoch=None,
        **kwargs,
    ):
        """Trains the student as `keras.Model.fit` does.

        Prepares the method first, with a progress bar of its own, if that
        has not been done (on all of `x`, whatever `validation_split`).

        Returns:
            The `keras.callbacks.History`: `loss`, `task_loss`, one entry for
            each method term, and the metrics.
        """
        self._assert_compile_called("fit")
        if self._tell_points and verbose:
            print(
                "Sensing points, student <- teacher: "
                + ", ".join(" <- ".join(each) for each in self.sensing_points)
            )
        if not self.method.prepared:
            self.prepare(
                x,
                y,
                verbose=verbose,
                batch_size=batch_size,
                shuffle=shuffle,
                steps_per_epoch=steps_per_epoch,
            )
        with self.distribute_strategy.scope():
            self._build_training(x, y)
        own_callbacks = [_EpochCounter(self._epoch)]
        if self.nonfinite == "skip":
            own_callbacks.insert(0, finiteness.RequireFiniteStep())
        return fitting.fit(
            self,
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            verbose=verbose,
            callbacks=[*own_callbacks, *(callbacks or [])],
            validation_split=validation_split,
            validation_data=validation_data,
            shuffle=shuffle,
            steps_per_epoch=steps_per_epoch,
            **kwargs,
        )

    def evaluate(self, x=None, y=None, **kwargs):
        return fitting.evaluate(self, x, y, **kwargs)

    def _build_training(self, x, y):
        fitting.build(self, self._student_features.shapes.outputs, x, y)

    def targets(self, x) -> Features:
        """Runs the teacher on a batch: see `Method.targets`."""
        return self.method.targets(self._teacher_features(x))

    def features(self, x) -> tuple[Features, Features]:
        """Runs both networks on a batch as in a test: nothing moves.

        Args:
            x: What the networks take, a batch.

        Returns:
            The student's and the teacher's features, as the method reads them.
        """
        return self._student_features(x), self._teacher_features(x)

    def train_step(self, data):
        if self.nonfinite == "raise":
            logs, _ = self._step(data, self._teacher_features)
            return logs
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self._build_training(None, y)
        state = self._state
        before = [tf.identity(variable) for variable in state]
        _, finite = self._step(data, self._teacher_features.unchecked())
        replicas.assign_unless(finite, state, before)
        self._skipped_steps.update_state(
            replicas.once(tf.cast(~finite, tf.float32))
        )
        return self.get_metrics_result()

    @property
    def _state(self) -> list[keras.Variable]:
        """What a step changes, but for a loss scale."""
        optimizer = self.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        metrics = [each for part in self.metrics for each in part.variables]
        return [*self.resumable_variables, *optimizer.variables, *metrics]

    def _step(self, data, teacher_features: FeatureExtractor):
        """Trains on a batch: gives logs, and whether all was finite."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        rule, learns = self.method.gradient_rule, self.method.teacher_learns
        teacher = None
        if isinstance(x, Taught):
            x, teacher = x.images, x.features
        elif self.method.terms and not learns:
            teacher = self.method.targets(teacher_features(x))
        persistent = rule.num_backward_passes > 1 or self.gradient_norms
        with tf.GradientTape(persistent=persistent) as tape:
            student = self._student_features(x, training=True)
            y = _require_valid_labels(y, student.outputs)
            if learns:
                teacher = teacher_features(x, training=True)
            terms = {}
            if self.method.terms:
                terms = self.method.shares(student, teacher, y)
            task_loss = self._task_share(y, student.outputs, sample_weight)
            of_teacher = []
            if learns:
                of_teacher = [
                    self._task_share(y, teacher.outputs, sample_weight)
                ]
            limited = self.method.limited_terms
            losses = Losses(
                task=_total(
                    [task_loss, *of_teacher]
                    + [terms[name] for name in terms if name not in limited]
                ),
                regularization=replicas.share(_total(self.losses)),
                transfer=_total([terms[name] for name in limited]),
            )
            scaled = Losses(*map(self.optimizer.scale_loss, losses))
        gradients = rule(
            tape,
            scaled,
            self.trainable_variables,
            self._epoch,
            student,
            self.method.limited_variables,
        )
        check = (
            self._require_finite
            if self.nonfinite == "raise"
            else self._tell_finite
        )
        gradients, finite = check(gradients, {"task_loss": task_loss, **terms})
        self.optimizer.apply(gradients, self.trainable_variables)
        if terms:
            self.method.update(student, teacher, y)

        batch_size = tf.shape(student.outputs)[0]
        losses, task_loss, terms = replicas.summed(
            (list(losses), task_loss, terms)
        )
        self._loss_tracker.update_state(sum(losses), batch_size)
        self._task_loss.update_state(task_loss, batch_size)
        for term in self._terms:
            term.update_state(terms[term.name], batch_size)
        if self.gradient_norms:
            norms = rule.norms(
                tape,
                scaled,
                self.student.trainable_variables,
                self._epoch,
                student,
            ).summary(self.optimizer.scale_loss(1.0))
            for norm in self._norms:
                norm.update_state(norms[norm.name], batch_size)
        logs = self.compute_metrics(x, y, student.outputs, sample_weight)
        return logs, finite

    def get_metrics_result(self):
        logs = super().get_metrics_result()
        if self.nonfinite != "skip":
            del logs["skipped_steps"]
        return logs

    def _require_finite(self, gradients, losses):
        """Checks both in the graph: gradients are given once they passed."""
        gradients = _after(finiteness.checks(losses), gradients)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # That one is there to pass over gradients that overflow.
            return gradients, True
        return _after(
            finiteness.checks(self._named(gradients)), gradients
        ), True

    def _tell_finite(self, gradients, losses):
        """Gives the gradients, and whether both are finite on all replicas."""
        values = losses | self._named(gradients)
        finite = replicas.everywhere(
            tf.reduce_all(
                [finiteness.is_finite(value) for value in values.values()]
            )
        )
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = finiteness.spoilt_unless(finite, gradients)
        return gradients, finite

    def _named(self, gradients):
        return {
            f"the gradient of {variable.path}": gradient
            for variable, gradient in zip(
                self.trainable_variables, gradients, strict=True
            )
            if gradient is not None
        }

    def _task_share(self, y, outputs, sample_weight):
        """This replica's share of the task's loss on the whole batch."""
        loss = self._compile_loss(*replicas.joined((y, outputs, sample_weight)))
        return loss if self._keras_shares else replicas.share(loss)

    def test_step(self, data):
        logs = super().test_step(data)
        of_training = {"skipped_steps", "task_loss", *SUMMARY}
        of_training.update(self.method.terms)
        return {name: logs[name] for name in logs if name not in of_training}

    def export(self, *args, **kwargs):
        """Exports the student alone, in inference mode.

        Takes the arguments of `keras.Model.export`. That of the student
        itself would leave random preprocessing inside of it switched on.
        """
        in_inference_mode(self.student).export(*args, **kwargs)

    def get_config(self):
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "method": keras.saving.serialize_keras_object(self.method),
            "sensing_points": [list(point) for point in self.sensing_points],
            "gradient_norms": self.gradient_norms,
        }

    @classmethod
    def from_config(cls, config):
        networks = {
            part: keras.saving.deserialize_keras_object(config[part])
            for part in ("student", "teacher", "method")
        }
        return cls(**{**config, **networks})


class _EpochCounter(keras.callbacks.Callback):
    """Counts finished epochs in a variable, which saves and resumes."""

    def __init__(self, epoch: keras.Variable):
        super().__init__()
        self._epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self._epoch.assign_add(1.0)


def _require_same_inputs(student: keras.Model, teacher: keras.Model) -> None:
    shapes = []
    for network in (student, teacher):
        require_network(network)
        shapes.append([shape[1:] for shape in input_shapes(network)])
    # Of a subclassed network that was loaded the shape may not be known.
    if all(shapes) and shapes[0] != shapes[1]:
        mine, its = (each[0] if len(each) == 1 else each for each in shapes)
        raise ValueError(
            "Student and teacher must have the same input shape. Received: "
            f"{mine} for {student.name!r}, {its} for {teacher.name!r}."
        )


def _require_same_classes(student: Features, teacher: Features) -> None:
    if student.outputs[1:] != teacher.outputs[1:]:
        raise ValueError(
            "Student and teacher must have the same number of classes. "
            f"Received: outputs {student.outputs[1:]} of the student, "
            f"{teacher.outputs[1:]} of the teacher."
        )


def _require_valid_labels(y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Checks class numbers in the graph: on GPU they would become NaN."""
    if not tf.is_tensor(y) or not y.dtype.is_integer:
        return y
    if y.shape.rank == 2 and y.shape[1] != 1:  # one-hot
        return y
    # One output is the probability or logit of the second of two classes.
    num_classes = max(2, outputs.shape[-1])
    labels = tf.cast(y, tf.int64)
    check = tf.debugging.Assert(
        tf.reduce_all((labels >= 0) & (labels < num_classes)),
        [
            f"Labels must be class numbers from 0 to {num_classes - 1}. "
            "Received labels in the range:",
            tf.reduce_min(labels),
            tf.reduce_max(labels),
        ],
    )
    return _after([check], y)


def _after(checks: list[tf.Operation | None], structure):
    """Gives tensors once checks have passed."""
    # Run eagerly, a check has raised already and gives no operation.
    checks = [check for check in checks if check is not None]
    with tf.control_dependencies(checks):
        return tf.nest.map_structure(
            lambda x: None if x is None else tf.identity(x), structure
        )


def _total(losses) -> tf.Tensor:
    losses = list(losses)
    return tf.add_n(losses) if losses else tf.constant(0.0)
