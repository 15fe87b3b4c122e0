"""Trains a student network with the help of a frozen teacher."""

import collections
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd import finiteness, methods
from keras_mhgd.checks import require_known
from keras_mhgd.distribution import fitting, replicas
from keras_mhgd.export.inference import in_inference_mode
from keras_mhgd.features import (
    End,
    FeatureExtractor,
    Features,
    Preprocessor,
    SensingPoints,
    Taught,
    Views,
    logits_end,
    pair,
    random_layers,
    require_network,
    text_as_tensors,
    with_input_shapes,
)
from keras_mhgd.gradients import SUMMARY, Losses, Step, apply
from keras_mhgd.linalg.precision import as_float
from keras_mhgd.methods.base.method import joined_needs
from keras_mhgd.outputs import Heads, Outputs
from keras_mhgd.requirements import (
    require_learning_teacher,
    require_nothing_shared,
    require_repeatable,
    require_same_classes,
    require_trainable,
    warn_of_random_layers,
)
from keras_mhgd.transfer import asked_for, is_by_head, placed


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Distiller(keras.Model):
    """Trains a student on its task and on a frozen teacher's features.

    A training step runs the teacher once and the student once. It computes

        loss = task_loss + the student's own losses + the method's terms,

    and updates the student once. The method decides how the gradients are
    joined. `fit` prepares the method first, if the method needs it. `evaluate`
    and `predict` run only the student and change no weights.

    Args:
        student: Network to train, from input to class scores or other outputs.
            It may be functional, sequential, or subclassed and built.
        teacher: Trained network with the same outputs, or a list of several.
            It runs in inference mode, and its `trainable` flag is not changed.
            Only a method of mutual learning trains it.
        method: A name of `keras_mhgd.methods.names()`, a `Method`, or a loss of
            `keras.distillation`. Several are a list, or names joined by `+`.
            For networks with several outputs, it may also be a dict of these
            by the outputs' names. Otherwise, each method that reads outputs is
            applied to every output.
        sensing_points: Where features are read: layer names, or (student layer,
            teacher layer) pairs, front end first. `None` finds and pairs the
            ends of stages or blocks. See `keras_mhgd.features.pair`. For
            several teachers, pass one list for all, or a list with one list of
            pairs for each teacher. Methods that read no maps ignore them.
        name: Name of the model.
        gradient_norms: Whether training also measures the norms
            `task_gradient` and `transfer_gradient`, and `clipped`, the fraction
            of clipped gradients: see `keras_mhgd.gradients.Norms`. This takes
            separate backward passes, but does not change the weights.
        teacher_weights: Weights of several teachers, each > 0; equal by
            default. Methods on logits learn from the teachers' weighted
            average. Other methods have a term for each teacher, times the
            teacher's weight.
        student_preprocessor: Function or Keras layer that is applied to a batch
            before the student, in training, `evaluate` and `predict`. `None`
            uses the network's own preprocessor, which tasks of KerasHub have.
            `keras.layers.Identity()` switches that off. See
            `keras_mhgd.features.Views`.
        teacher_preprocessor: The teacher's preprocessor, with the same options.
            For several teachers, pass one for all, or a list.

    Raises:
        TypeError: If a network is not a built Keras model.
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
        teacher: keras.Model | Sequence[keras.Model],
        method: methods.Identifier
        | Sequence[methods.Identifier]
        | Mapping[str, methods.Identifier] = "mhgd",
        sensing_points: SensingPoints = None,
        name: str = "distiller",
        gradient_norms: bool = False,
        teacher_weights: Sequence[float] | None = None,
        student_preprocessor: Preprocessor = None,
        teacher_preprocessor: Preprocessor | Sequence[Preprocessor] = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.student = student
        self.teacher = teacher
        self.teacher_weights = _normalized(self.teachers, teacher_weights)
        self.nonfinite, self.task = "raise", None  # until it is compiled
        for each in (student, *self.teachers):
            require_network(each)
        for each in self.teachers:
            require_nothing_shared(student, each)
        several = isinstance(teacher_preprocessor, (list, tuple))
        self._views = [
            Views(student, each, student_preprocessor, preprocessor)
            for each, preprocessor in zip(
                self.teachers,
                teacher_preprocessor
                if several
                else [teacher_preprocessor] * len(self.teachers),
                strict=True,
            )
        ]
        # As attributes they are tracked, so Keras saves what they have learnt.
        given = [each.given for each in self._views]
        self.student_preprocessor = given[0]["student_preprocessor"]
        self.teacher_preprocessor = _one_or_all(
            [each["teacher_preprocessor"] for each in given]
        )
        first = self._views[0]
        # If the student starts with augmentation, this is applied before both
        # networks.
        self.augments = len(self._views) == 1 and first.network is not student
        trained = first.network if self.augments else student
        warn_of_random_layers(student, random_layers(trained))
        require_trainable(student)
        shapes = FeatureExtractor(trained, []).shapes
        heads = Heads(shapes.outputs, getattr(student, "output_names", None))
        self._asked = asked_for(method, heads)
        parts = [part for part, _ in self._asked]
        if any(part.built for part in parts):
            raise ValueError(
                "`method` must not belong to another distiller. Received: "
                f"{method!r}, which does. Make a new one; what it learnt from "
                "the teacher can be passed on, as in MHGD(mhan=method.mhan)."
            )
        learns = [part for part in parts if part.trains_teacher]
        if learns:
            require_learning_teacher(
                type(learns[0]).__name__, self.teachers, heads
            )
        needs = joined_needs(part.needs for part in parts)
        logits_as_point = needs.logits_as_point and not heads.several
        pairs = [
            pair(
                with_input_shapes(trained, view.student_shapes or ()),
                with_input_shapes(each, view.teacher_shapes or ()),
                points,
                needs.least_points,
                logits_as_point,
            )
            if needs.points
            else []
            for each, view, points in zip(
                self.teachers,
                self._views,
                self._given_points(sensing_points),
                strict=True,
            )
        ]
        self.sensing_points = tuple(
            pairs[0] if len(pairs) == 1 else map(tuple, pairs)
        )
        self._tell_points = needs.points and sensing_points is None
        points = list(dict.fromkeys(ours for each in pairs for ours, _ in each))
        self._transfer = placed(
            self._asked, heads, points, pairs, self.teacher_weights
        )
        self.methods = self._transfer.methods  # Keras tracks them here
        # Epochs since transfer began. Some rules of gradients depend on them.
        self._epoch = self.add_weight(
            name="epoch", initializer="zeros", trainable=False, dtype="float32"
        )
        split = self._transfer.gradient_rule.split
        self._student_features = FeatureExtractor(
            trained,
            points,
            needs.fields,
            [layer for layer, _ in needs.layers if layer],
            split=split and functools.partial(split, epoch=self._epoch),
            logits=[logits_end(student)] if points and logits_as_point else [],
            input_shapes=self._views[0].student_shapes,
            view=lambda x: first.student(x)[0],
        )
        self._teacher_features = [
            FeatureExtractor(
                each,
                [theirs for _, theirs in found],
                needs.fields,
                [layer for _, layer in needs.layers if layer],
                require_finite=True,
                logits=[logits_end(each)] if found and logits_as_point else [],
                input_shapes=view.teacher_shapes,
                view=view.teacher,
            )
            for each, found, view in zip(
                self.teachers, pairs, self._views, strict=True
            )
        ]
        shapes = [each.shapes for each in self._extractors]
        for each in shapes[1:]:
            require_same_classes(heads, shapes[0], each)
        self._outputs = Outputs(
            heads,
            shapes[0].outputs,
            [each.ends for each in self._extractors],
            self.teacher_weights,
            [(part, place.head) for part, place, _ in self._transfer],
        )
        ours, *theirs = map(self._outputs.by_head, shapes)
        self._transfer.build(ours, theirs)
        self._skipped_steps = keras.metrics.Sum(name="skipped_steps")
        self._task_loss = keras.metrics.Mean(name="task_loss")
        self._terms = [
            keras.metrics.Mean(name=term) for term in self._transfer.terms
        ]
        self.gradient_norms = gradient_norms
        self._norms = [
            keras.metrics.Mean(name=name) for name in SUMMARY if gradient_norms
        ]
        self.built = True

    @property
    def teachers(self) -> list[keras.Model]:
        """The teacher, or all of several."""
        several = isinstance(self.teacher, (list, tuple))
        return list(self.teacher) if several else [self.teacher]

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the methods' terms in the history."""
        return self._transfer.terms

    @property
    def prepared(self) -> bool:
        """Whether the student can train: all methods are prepared."""
        return self._transfer.prepared

    @property
    def trains_teacher(self) -> bool:
        """Whether a method also trains the teacher."""
        return self._transfer.trains_teacher

    @property
    def prepared_networks(self) -> dict[str, keras.Model]:
        """The networks that methods learn from the teacher alone, by name."""
        return self._transfer.networks

    @property
    def output_names(self) -> list[str] | None:
        """The names by which Keras keys the losses of several outputs."""
        heads = self._outputs.heads
        return list(heads.names) if heads.several else None

    @property
    def teacher_ends(self) -> list[End | list[End]]:
        """How each teacher's outputs end: with logits, or with a softmax."""
        return [each.ends for each in self._teacher_features]

    @property
    def _extractors(self) -> list[FeatureExtractor]:
        return [self._student_features, *self._teacher_features]

    def _given_points(self, sensing_points) -> list[SensingPoints]:
        """Lists the sensing points that were given for each teacher."""
        number = len(self.teachers)
        each = (
            number > 1
            and sensing_points
            and all(
                isinstance(points, (list, tuple))
                and all(isinstance(point, (list, tuple)) for point in points)
                for points in sensing_points
            )
        )
        return list(sensing_points) if each else [sensing_points] * number

    def call(self, inputs, training=False):
        if isinstance(inputs, Taught):
            inputs = inputs.images
        inputs, _, _ = self._views[0].student(inputs)
        return self.student(inputs, training=training)

    @property
    def trainable_variables(self):
        """The variables that training changes.

        The teacher's are included only if a method trains the teacher.
        """
        return [
            variable
            for part in self._learning
            for variable in part.trainable_variables
        ]

    @property
    def trainable_weights(self):
        """The same as `trainable_variables`."""
        return self.trainable_variables

    @property
    def losses(self):
        """The own losses of networks and methods, such as weight decay."""
        return [loss for part in self._learning for loss in part.losses]

    @property
    def _learning(self) -> list[keras.Layer]:
        peers = self.teachers if self.trains_teacher else []
        return [self.student, *peers, *self.methods]

    @property
    def resumable_variables(self) -> list[keras.Variable]:
        """All state of a training except the optimizer's."""
        parts = [part.variables for part in self._learning]
        return [*(each for part in parts for each in part), self._epoch]

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        *,
        nonfinite="raise",
        task=None,
        **kwargs,
    ):
        """Configures the training as `keras.Model.compile` does.

        Args:
            optimizer: As in Keras.
            loss: The student's task loss. With `None`, or for data without
                labels, the student learns from the teacher alone.
            nonfinite: What happens in a step whose losses or gradients are NaN
                or infinite. `"raise"` ends the training and names the term or
                layer. A step that XLA compiled ends it by `FloatingPointError`
                without the name. `"raise"` does not check the gradients of a
                `LossScaleOptimizer`, which handles overflow itself. `"skip"`
                undoes the step: weights, statistics, optimizer and metrics get
                their values from before the step. A `LossScaleOptimizer` still
                lowers its scale. The metric `skipped_steps` then counts the
                skipped steps of an epoch. `FloatingPointError` is raised if all
                steps of an epoch are skipped. Skipping needs memory for another
                copy of weights and optimizer. Preparations and teacher caches
                always raise.
            task: What the outputs mean: one of `keras_mhgd.tasks.KINDS` or, for
                several outputs, a list or dict of them. It is needed only if
                neither a softmax nor one of Keras's losses shows the meaning.
            **kwargs: Other arguments of `keras.Model.compile`.

        Raises:
            ValueError: If there is neither a `loss` nor a method with a loss,
                or if an argument is unknown.
        """
        require_known("nonfinite", nonfinite, ["raise", "skip"])
        if loss is None and not self.terms:
            raise ValueError(
                "`loss` must be the student's task loss, such as "
                "keras.losses.SparseCategoricalCrossentropy(from_logits=True),"
                " if the method has none. Received: loss=None."
            )
        if not all(each.supports_jit for each in self._views):
            if kwargs.get("jit_compile", "auto") is True:
                raise ValueError(
                    "`jit_compile` must be False, since XLA does not compile "
                    "the preprocessing of text. Received: jit_compile=True. "
                    "Leave it out, or preprocess the data with "
                    "tf.data.Dataset.map."
                )
            kwargs["jit_compile"] = False
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        self.nonfinite = nonfinite
        self.task = task
        self._outputs.compile(loss, task)
        shares = {
            replicas.keras_shares(each)
            for each in self._outputs.losses.values()
            if isinstance(each, keras.losses.Loss)
        }
        if (
            len(shares) > 1
            and self.distribute_strategy.num_replicas_in_sync > 1
        ):
            raise ValueError(
                "All losses must take a mean, or none, on several devices. "
                f"Received: loss={loss!r}. Choose one `reduction` for all."
            )
        # Keras wraps a loss that isn't a loss object in one that takes a mean.
        self._keras_shares = shares != {False}

    def get_compile_config(self):
        config = super().get_compile_config()
        mine = {"nonfinite": self.nonfinite, "task": self.task}
        return config and {**config, **mine}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def prepare(self, x=None, y=None, verbose="auto", **fit_arguments):
        """Lets the method learn what it needs before the student trains.

        `fit` calls this itself if the method is not prepared.

        Args:
            x: Training images, as `fit` takes them.
            y: Labels, as `fit` takes them.
            verbose: As in `fit`.
            **fit_arguments: Other arguments of `fit`: `batch_size`, `shuffle`
                and `steps_per_epoch`, which describe the data, and `callbacks`.
                One more is `fit`, a function that is called instead of
                `keras.Model.fit`, with the model to train and all arguments.
        """
        if verbose:
            unprepared = self._transfer.unprepared
            names = [type(each).__name__ for each in unprepared]
            of = ", ".join(repr(each.name) for each in self.teachers)
            print(
                f"Preparing {', '.join(names)} on {of}. "
                "The student trains after that."
            )
        require_repeatable(x)
        with self.distribute_strategy.scope():
            self._transfer.prepare(
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

        If the method is not prepared, it is prepared first, with a separate
        progress bar. The preparation uses all of `x`, whatever the
        `validation_split`.

        Args:
            x: Inputs in the form that the preprocessors take, or else the
                student: arrays or text, alone or in a dict or tuple. Or batches
                `(x, y)` or `(x, y, sample_weight)`: a `tf.data.Dataset`, a
                `keras.utils.PyDataset` or a `keras_mhgd.distribution.Shared`.
                With several workers, one array, a `tf.data.Dataset` or a
                `Shared`.
            y: Labels, if they are not in `x`. `None` for data without labels.
            batch_size: Samples in a batch of arrays, over all replicas. As in
                `keras.Model.fit`, and so are the following arguments.
            epochs: Last epoch.
            verbose: `0`, `1`, `2` or `"auto"`. Unless it is 0, the layers and
                inputs that were chosen automatically are printed as well.
            callbacks: Callbacks of the student's training. The preparation
                does not run them.
            validation_split: Fraction of arrays to validate on. Not supported
                with several workers.
            validation_data: `(x, y)`, `(x, y, sample_weight)`, or batches of
                these.
            shuffle: Whether arrays are shuffled before each epoch.
            steps_per_epoch: Batches in an epoch. `None` for all of `x`.
            **kwargs: Other arguments of `keras.Model.fit`, such as
                `sample_weight` and `initial_epoch`.

        Returns:
            The `keras.callbacks.History` with `loss`, `task_loss`, one entry
            for each method term, and the metrics.

        Raises:
            ValueError: If the labels or an argument don't fit the training, or
                if `x` is an iterator and the method must be prepared.
            RuntimeError: If another worker is lost.
        """
        self._assert_compile_called("fit")
        if isinstance(x, tf.data.Dataset | fitting.Shared):
            _, labels, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
            self._outputs.settle(labels)
        elif _is_array(x):
            self._outputs.settle(y)
        if verbose:
            print(self._told(), end="")
        x = text_as_tensors(x)
        if not self.prepared:
            self.prepare(
                x,
                y,
                verbose=verbose,
                batch_size=batch_size,
                shuffle=shuffle,
                steps_per_epoch=steps_per_epoch,
            )
        if isinstance(validation_data, tuple):
            validation_data = (
                text_as_tensors(validation_data[0]),
                *validation_data[1:],
            )
        with self.distribute_strategy.scope():
            self._build_training(self._label_specs(x, y))
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

    def _told(self) -> str:
        """Lists the automatic choices of layers and inputs, a line for each."""
        several = len(self.teachers) > 1
        points = self.sensing_points if several else [self.sensing_points]
        lines = []
        for teacher, view, found in zip(
            self.teachers, self._views, points, strict=True
        ):
            name = teacher.name if several else "teacher"
            if self._tell_points:
                pairs = ", ".join(" <- ".join(each) for each in found)
                lines.append(f"Sensing points, student <- {name}: {pairs}")
            if view.pairs:
                pairs = ", ".join(" = ".join(each) for each in view.pairs)
                lines.append(
                    f"Inputs paired by order, student = {name}: {pairs}"
                )
        return "".join(f"{line}\n" for line in lines)

    def evaluate(self, x=None, y=None, **kwargs):
        """Evaluates the student as `keras.Model.evaluate` does.

        The method's terms are not computed.

        Args:
            x: As for `fit`.
            y: Labels, if they are not in `x`.
            **kwargs: Other arguments of `keras.Model.evaluate`.

        Returns:
            The loss and the metrics, as `keras.Model.evaluate` gives them.

        Raises:
            ValueError: If the data has no labels.
            RuntimeError: If another worker is lost.
        """
        x = text_as_tensors(x)
        shapes = self._student_features.shapes.outputs
        with self.distribute_strategy.scope():
            fitting.build_metrics(self, shapes, self._label_specs(x, y))
        return fitting.evaluate(self, x, y, **kwargs)

    def predict(self, x, **kwargs):
        """Computes the student's outputs as `keras.Model.predict` does.

        Args:
            x: As for `keras.Model.predict`, in the form that the preprocessors
                take, or else the student. Text may be lists or arrays.
            **kwargs: Other arguments of `keras.Model.predict`.

        Returns:
            The outputs for all samples: an array, or a list or dict of arrays
            for several outputs.
        """
        return fitting.predict(self, text_as_tensors(x), **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy, Keras 3.15 builds metrics from the mean of the
        # replicas' batches, and no text has a mean. So this is left to Keras
        # only if metrics are not built yet and there are labels to build for.
        batch = data_batch
        if iterator is not None:
            batch = iterator._distributed_dataset.element_spec
        _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        metrics = self._compile_metrics
        if y is not None and metrics is not None and not metrics.built:
            super()._maybe_symbolic_build(iterator, data_batch)

    def _build_training(self, y):
        fitting.build(self, self._student_features.shapes.outputs, None, y)

    def _label_specs(self, x, y):
        """Gives the labels' specs after preprocessing, if `x` shows shapes."""
        batched = isinstance(x, tf.data.Dataset | fitting.Shared)
        data = x.element_spec if batched else (x, y)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if isinstance(x, Taught):
            x = x.images
        leaves = keras.tree.flatten((x, y, sample_weight))
        if not all(each is None or hasattr(each, "shape") for each in leaves):
            return y
        specs = keras.tree.map_structure(_spec, (x, y, sample_weight))
        return self._views[0].labels(*specs)

    def targets(self, x) -> Features | list[Features]:
        """Runs the teacher, or each of several, on a batch.

        Args:
            x: A batch of inputs, before preprocessing.

        Returns:
            The features that the methods read: see `Method.targets`. For
            several teachers, a list.
        """
        inputs = [each.teacher(x) for each in self._views]
        return _one_or_all(self._targets(inputs, self._teacher_features))

    def _targets(self, inputs, extractors) -> list[Features]:
        return self._transfer.targets(
            [
                extractor.read(each).without_padding()
                for extractor, each in zip(extractors, inputs, strict=True)
            ]
        )

    def features(self, x) -> tuple[Features, Features | list[Features]]:
        """Runs all networks on a batch in inference mode.

        Args:
            x: A batch of inputs.

        Returns:
            The student's and the teacher's features, as the method reads them.
            For several teachers, the latter are a list.
        """
        student, *teachers = (
            self._outputs.by_head(each(x).without_padding())
            for each in self._extractors
        )
        return student, _one_or_all(teachers)

    def make_train_function(self, force=False):
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        if self.nonfinite == "raise" and self.jit_compile:
            self.train_function = finiteness.raising(
                self.train_function, self._skipped_steps
            )

    def train_step(self, data):
        if self.nonfinite == "raise":
            batch = self._seen(data, self._teacher_features)
            finite = self._step(batch, self._teacher_features)
            if finite is not None:
                self._count_unless(finite)
            return self._logs(batch.y)
        unchecked = [each.unchecked() for each in self._teacher_features]
        # Before the views are made, which may draw random numbers.
        state = list(self.resumable_variables)
        before = [tf.identity(variable) for variable in state]
        batch = self._seen(data, unchecked)
        self._build_training(batch.y)
        others = self._other_state
        before += [tf.identity(variable) for variable in others]
        finite = self._step(batch, unchecked)
        replicas.assign_unless(finite, [*state, *others], before)
        self._count_unless(finite)
        return self._logs(batch.y)

    def _count_unless(self, finite: tf.Tensor) -> None:
        """Counts a step whose values are not all finite."""
        self._skipped_steps.update_state(
            replicas.once(tf.cast(~finite, tf.float32))
        )

    @property
    def _other_state(self) -> list[keras.Variable]:
        """The variables of the optimizer, except a loss scale, and metrics."""
        optimizer = self.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        metrics = [each for part in self.metrics for each in part.variables]
        return [*optimizer.variables, *metrics]

    def _step(self, batch: "_Batch", teacher_features: list[FeatureExtractor]):
        """Trains on a batch and tells whether all values were finite.

        The answer is `None` if a check in the graph raises instead.
        """
        rule = self._transfer.gradient_rule
        persistent = rule.num_backward_passes > 1 or self.gradient_norms
        with tf.GradientTape(persistent=persistent) as tape:
            batch, terms, losses = self._evaluate(batch, teacher_features)
            scaled = Losses(*map(self.optimizer.scale_loss, losses))
        step = Step(
            tape,
            scaled,
            self.trainable_variables,
            self._epoch,
            batch.student,
            self._transfer.limited_variables,
        )
        gradients, finite = self._checked(rule(step), terms)
        self._apply(gradients, finite if self.nonfinite == "skip" else None)
        if self.terms:
            self._transfer.update(*batch.read)
        self._record(batch, terms, losses, step)
        return finite

    def _seen(self, data, teacher_features) -> "_Batch":
        """Makes both networks' views of a batch, and the teachers' targets."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        first, *others = self._views
        if isinstance(x, Taught):
            x, teachers = x.images, _all(x.features)
        elif self.terms:
            view = first(x, y, sample_weight, training=self.augments)
            inputs = [view.teacher, *(each.teacher(x) for each in others)]
            batch = _Batch(view.student, view.y, view.sample_weight)
            if self.trains_teacher:
                return batch._replace(inputs=inputs)
            return batch._replace(
                teachers=self._targets(inputs, teacher_features)
            )
        else:
            teachers = []
        seen = first.student(x, y, sample_weight, training=self.augments)
        return _Batch(*seen, teachers=teachers)

    def _evaluate(self, batch: "_Batch", teacher_features):
        """Runs the student and any teacher that learns: gives all losses."""
        x, y, sample_weight, teachers, inputs, *_ = batch
        student = self._student_features.read(x, training=True)
        y = self._outputs.checked_labels(y, student.outputs, sample_weight)
        peers = []
        if inputs:
            peers = [
                extractor.read(each, training=True)
                for extractor, each in zip(
                    teacher_features, inputs, strict=True
                )
            ]
            teachers = self._transfer.targets(
                [each.without_padding() for each in peers]
            )
        terms, read = {}, ()
        if self.terms:
            read = self._outputs.read(student, teachers, y, sample_weight)
            terms = self._transfer.shares(*read)
        task_losses = [
            self._task_share(y, each, sample_weight)
            for each in (student, *peers)
        ]
        limited = self._transfer.limited_terms
        losses = Losses(
            task=_total(
                task_losses
                + [terms[name] for name in terms if name not in limited]
            ),
            regularization=replicas.share(_total(self.losses)),
            transfer=_total([terms[name] for name in limited]),
        )
        batch = batch._replace(y=y, student=student, read=read)
        return batch, {"task_loss": task_losses[0], **terms}, losses

    def _record(self, batch: "_Batch", terms, losses, step: Step) -> None:
        """Updates the metrics."""
        outputs = batch.student.outputs
        batch_size = tf.shape(tf.nest.flatten(outputs)[0])[0]
        losses, terms = replicas.summed((list(losses), terms))
        self._loss_tracker.update_state(_total(losses), batch_size)
        for metric in (self._task_loss, *self._terms):
            metric.update_state(terms[metric.name], batch_size)
        if self.gradient_norms:
            variables = self.student.trainable_variables
            norms = self._transfer.gradient_rule.norms(
                step._replace(variables=variables)
            ).summary(self.optimizer.scale_loss(1.0))
            for norm in self._norms:
                norm.update_state(norms[norm.name], batch_size)
        if batch.y is not None:
            self.compute_metrics(batch.x, batch.y, outputs, batch.sample_weight)

    def _apply(self, gradients, finite) -> None:
        """Updates variables that a loss reaches, and warns of all others."""
        variables = self.trainable_variables
        if not self.optimizer.built:
            self.optimizer.build(variables)
        missed = apply(self.optimizer, gradients, variables, finite)
        if missed:
            warnings.warn(
                "Labels, or a method on outputs such as 'soft_logits', must "
                "reach all variables that are to learn. Received: no loss for "
                f"{missed}, which keep their values.",
                stacklevel=2,
            )

    def _logs(self, y) -> dict[str, tf.Tensor]:
        """Gives the logs of a training step; without labels, no metrics."""
        logs = self.get_metrics_result()
        if y is not None or self._compile_metrics is None:
            return logs
        names = {each.name for each in (self._loss_tracker, *self._own_metrics)}
        return {name: logs[name] for name in logs if name in names}

    @property
    def _own_metrics(self) -> list[keras.metrics.Metric]:
        return [
            self._task_loss,
            self._skipped_steps,
            *self._terms,
            *self._norms,
        ]

    def get_metrics_result(self):
        logs = {}
        for metric in self.metrics:
            if metric is self._compile_metrics and not metric.built:
                continue  # no labels have been seen
            result = metric.result()
            logs |= (
                result if isinstance(result, dict) else {metric.name: result}
            )
        if self.nonfinite != "skip":
            del logs["skipped_steps"]
        return logs

    def _get_metrics_result_or_logs(self, logs):
        # Keras 3.15 takes the results over all replicas only if a step logs all
        # metrics, as a test doesn't. Otherwise it averages the replicas' logs,
        # whatever their numbers of samples.
        results = self.get_metrics_result()
        return {name: results.get(name, logs[name]) for name in logs}

    def _checked(self, gradients, losses):
        """Checks losses and gradients.

        Returns:
            The gradients, which wait for checks in the graph, and whether all
            replicas' values are finite: `None` with checks in the graph.
        """
        named = self._named(gradients)
        raises = self.nonfinite == "raise"
        if raises and isinstance(
            self.optimizer, keras.optimizers.LossScaleOptimizer
        ):
            named = {}  # this optimizer skips steps whose gradients overflow
        # A loss comes first, as its gradients are not finite either.
        values = losses | named
        # XLA leaves out checks that raise.
        if raises and (tf.executing_eagerly() or not self.jit_compile):
            check = finiteness.check(values)
            return finiteness.after([check], gradients), None
        return gradients, finiteness.all_finite(values.values())

    def _named(self, gradients):
        return {
            f"the gradient of {variable.path}": gradient
            for variable, gradient in zip(
                self.trainable_variables, gradients, strict=True
            )
            if gradient is not None
        }

    def _task_share(self, y, found: Features, sample_weight):
        """Computes this replica's share of the task loss of the whole batch."""
        if y is None or self._compile_loss is None:
            return tf.constant(0.0)
        outputs, masks = found.outputs, found.output_masks
        if replicas.number() > 1:
            y, outputs, sample_weight, masks = replicas.joined(
                (y, outputs, sample_weight, masks)
            )
            if masks is not None:  # Keras reads masks from the tensors
                tf.nest.map_structure(_attach_mask, outputs, masks)
        loss = self._compile_loss(y, outputs, sample_weight)
        return loss if self._keras_shares else replicas.share(loss)

    def test_step(self, data):
        data = keras.utils.unpack_x_y_sample_weight(data)
        x, y, sample_weight = self._views[0].student(*data)
        if y is None:
            raise ValueError(
                "`evaluate` must get labels to compare the predictions with. "
                "Received: data without labels. Pass them, or use `predict`."
            )
        outputs = self.student(x, training=False)
        of_training = {each.name for each in self._own_metrics}
        if self._compile_loss is None:
            of_training.add("loss")
        else:
            loss = self.compute_loss(x, y, outputs, sample_weight)
            # The tracker takes a mean over the replicas, but each replica has
            # only its share of the loss.
            self._loss_tracker.update_state(
                loss * replicas.number(), tf.shape(tf.nest.flatten(x)[0])[0]
            )
        logs = self.compute_metrics(x, y, outputs, sample_weight)
        return {name: logs[name] for name in logs if name not in of_training}

    def export(self, *args, **kwargs):
        """Exports the student alone, in inference mode.

        If the student's own `export` were called, random preprocessing inside
        the student would stay active.

        Args:
            *args: Arguments of `keras.Model.export`, first the path.
            **kwargs: Arguments of `keras.Model.export` by name.
        """
        in_inference_mode(self.student).export(*args, **kwargs)

    def get_config(self):
        several = len(self.teachers) > 1
        points = self.sensing_points if several else [self.sensing_points]
        points = [[list(point) for point in each] for each in points]
        method = [_serialized(part) for part, _ in self._asked]
        if any(head for _, head in self._asked):
            method = collections.defaultdict(list)
            for part, head in self._asked:
                method[head].append(_serialized(part))
            method = dict(method)
        return {
            "name": self.name,
            "student": _serialized(self.student),
            "teacher": _serialized(self.teacher),
            "method": method,
            "sensing_points": points if several else points[0],
            "gradient_norms": self.gradient_norms,
            "teacher_weights": list(self.teacher_weights),
            **self._views[0].get_config(),
            "teacher_preprocessor": _one_or_all(
                [
                    each.get_config()["teacher_preprocessor"]
                    for each in self._views
                ]
            ),
        }

    @classmethod
    def from_config(cls, config):
        networks = {
            part: _deserialized(config[part])
            for part in (
                "student",
                "teacher",
                "method",
                "student_preprocessor",
                "teacher_preprocessor",
            )
        }
        return cls(**{**config, **networks})


class _Batch(NamedTuple):
    """Holds a batch of a training step, and the features read from the batch.

    Attributes:
        x: The student's view.
        y: Labels.
        sample_weight: Weights of samples.
        teachers: The teachers' targets.
        inputs: The views of teachers that learn.
        student: The student's features.
        read: The features and labels that methods read: see `Outputs.read`.
    """

    x: Any
    y: Any
    sample_weight: Any
    teachers: Sequence[Features] = ()
    inputs: Sequence[Any] = ()
    student: Features | None = None
    read: tuple = ()


class _EpochCounter(keras.callbacks.Callback):
    """Counts finished epochs in a variable, which checkpoints can save."""

    def __init__(self, epoch: keras.Variable):
        super().__init__()
        self._epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self._epoch.assign_add(1.0)


def _normalized(
    teachers: Sequence[keras.Model], weights: Sequence[float] | None
) -> tuple[float, ...]:
    """Scales the teachers' weights to a sum of 1."""
    weights = [1.0] * len(teachers) if weights is None else list(weights)
    if not teachers or len(weights) != len(teachers) or min(weights) <= 0:
        raise ValueError(
            "`teacher_weights` must be a positive number for each teacher. "
            f"Received: {weights} for {len(teachers)} teachers."
        )
    return tuple(weight / sum(weights) for weight in weights)


def _is_array(x: Any) -> bool:
    return all(hasattr(each, "shape") for each in keras.tree.flatten(x))


def _serialized(given: Any) -> Any:
    if is_by_head(given):
        return {head: _serialized(given[head]) for head in given}
    if isinstance(given, (list, tuple)):
        return [_serialized(each) for each in given]
    return keras.saving.serialize_keras_object(given)


def _deserialized(config: Any) -> Any:
    if is_by_head(config):
        return {head: _deserialized(config[head]) for head in config}
    if isinstance(config, list):
        return [_deserialized(each) for each in config]
    return keras.saving.deserialize_keras_object(config)


def _spec(value: Any) -> Any:
    """Gives the spec of an array's batches, of any size."""
    if value is None or isinstance(value, tf.TypeSpec):
        return value
    return tf.TensorSpec([None, *value.shape[1:]], value.dtype)


def _one_or_all(found: list) -> Any:
    return found[0] if len(found) == 1 else found


def _all(found: Features | list[Features]) -> list[Features]:
    return [found] if isinstance(found, Features) else list(found)


def _attach_mask(tensor: tf.Tensor, mask: tf.Tensor | None) -> None:
    tensor._keras_mask = mask


def _total(losses) -> tf.Tensor:
    """Adds up scalars, in float64 if one of them is."""
    losses = [as_float(loss) for loss in losses]
    if not losses:
        return tf.constant(0.0)
    return tf.add_n([as_float(loss, *losses) for loss in losses])
