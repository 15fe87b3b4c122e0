"""The model that trains a student from a frozen teacher."""

import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd import finiteness, fitting, methods, replicas
from keras_mhgd.choices import require_known
from keras_mhgd.export.network import in_inference_mode
from keras_mhgd.features import (
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
from keras_mhgd.gradients import SUMMARY, Losses, apply
from keras_mhgd.methods.combined import Combined
from keras_mhgd.outputs import Heads, Outputs
from keras_mhgd.placing import asked_for, is_by_head, placed
from keras_mhgd.precision import as_float
from keras_mhgd.requirements import (
    require_learning_teacher,
    require_nothing_shared,
    require_repeatable,
    require_same_classes,
    require_trainable,
    warn_of_random_layers,
)


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Distiller(keras.Model):
    """Trains a student on its task and on what a frozen teacher shows.

    One step: one forward pass of the teacher, one of the student, the losses

        loss = task_loss + the student's own `losses` + the method's terms,

    and one update of the student, with the gradients joined as the method
    says. `fit` prepares the method first if it needs it. `evaluate` and
    `predict` are the student's: the teacher doesn't run and no weight moves.

    Args:
        student: Network to train, input to class scores or other outputs:
            functional, sequential, or subclassed and built.
        teacher: Trained network with the same outputs, or a list of several.
            It runs in inference mode; its `trainable` flag is left as it is.
            Only a method of mutual learning trains it.
        method: A name of `keras_mhgd.methods.names()`, a `Method`, a loss of
            `keras.distillation`, or several: a list, or names joined by `+`.
            For networks with several outputs also a dict of these, by the
            outputs' names; else each method that reads outputs is there for
            each.
        sensing_points: Where features are read: `None` finds and pairs the
            ends of stages or blocks; or layer names, or (student layer,
            teacher layer) pairs, front end first. See
            `keras_mhgd.features.pair`. For several teachers, a list of such
            lists of pairs, or one for all. A method that reads no maps leaves
            them unused.
        name: Name of the model.
        gradient_norms: Whether training measures, beside the losses, the
            norms `task_gradient` and `transfer_gradient`, and the share that
            is `clipped`: see `keras_mhgd.gradients.Norms`. It takes backward
            passes of its own; the weights stay the same.
        teacher_weights: Of several teachers, each > 0; equal by default.
            Methods on logits learn from the teachers' weighted average,
            others have a term for each teacher, times its weight.
        student_preprocessor: What is applied to a batch in front of the
            student, in training, `evaluate` and `predict`: a function or a
            Keras layer. `None` is the network's own, as tasks of KerasHub
            have one; `keras.layers.Identity()` is none. See
            `keras_mhgd.features.Views`.
        teacher_preprocessor: The same for the teacher; for several teachers
            one for all, or a list.

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
        self.teacher_weights = _shares(self.teachers, teacher_weights)
        self._given_method = None
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
        # Keras saves what they have learnt.
        given = [each.given for each in self._views]
        self.student_preprocessor = given[0]["student_preprocessor"]
        self.teacher_preprocessor = _one_or_all(
            [each["teacher_preprocessor"] for each in given]
        )
        first = self._views[0]
        # Augmentation that the student starts with goes before both networks.
        self.augments = len(self._views) == 1 and first.network is not student
        trained = first.network if self.augments else student
        warn_of_random_layers(student, random_layers(trained))
        require_trainable(student)
        shapes = FeatureExtractor(trained, []).shapes
        heads = Heads(shapes.outputs, getattr(student, "output_names", None))
        if not is_by_head(method):
            method = methods.get(method)
        asked = asked_for(method, heads)
        if any(part.built for part, _ in asked):
            raise ValueError(
                "`method` must not belong to another distiller. Received: "
                f"{method!r}, which does. Make a new one; what it learnt from "
                "the teacher can be passed on, as in MHGD(mhan=method.mhan)."
            )
        parts = [part for part, _ in asked]
        learns = [part for part in parts if part.teacher_learns]
        if learns:
            require_learning_teacher(
                type(learns[0]).__name__, self.teachers, heads
            )
        reads_points = any(part.reads_points for part in parts)
        senses_logits = (
            any(part.senses_logits for part in parts) and not heads.several
        )
        pairs = [
            pair(
                with_input_shapes(trained, view.student_shapes or ()),
                with_input_shapes(each, view.teacher_shapes or ()),
                points,
                max(part.min_points for part in parts),
                senses_logits,
            )
            if reads_points
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
        self._tell_points = reads_points and sensing_points is None
        points = list(dict.fromkeys(ours for each in pairs for ours, _ in each))
        self.method = method
        if len(pairs) > 1 or heads.several:
            self.method = placed(
                asked,
                heads,
                points,
                pairs,
                self.teacher_weights,
                weight=method.weight if isinstance(method, Combined) else 1.0,
            )
            self._given_method = functools.partial(_serialized, method)
        # Epochs since transfer began: some methods' strength depends on it.
        self._epoch = self.add_weight(
            name="epoch", initializer="zeros", trainable=False, dtype="float32"
        )
        needs = self.method.needs
        others = [need for need in needs if isinstance(need, tuple)]
        split = self.method.gradient_rule.split
        self._student_features = FeatureExtractor(
            trained,
            points,
            needs,
            [layer for layer, _ in others if layer],
            split=split and functools.partial(split, epoch=self._epoch),
            logits=[logits_end(student)] if points and senses_logits else [],
            input_shapes=self._views[0].student_shapes,
            view=lambda x: first.student(x)[0],
        )
        self._teacher_features = [
            FeatureExtractor(
                each,
                [theirs for _, theirs in found],
                needs,
                [layer for _, layer in others if layer],
                require_finite=True,
                logits=[logits_end(each)] if found and senses_logits else [],
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
        )
        ours, *theirs = map(self._outputs.by_head, shapes)
        self.method.build(ours, _one_or_all(theirs))
        self._skipped_steps = keras.metrics.Sum(name="skipped_steps")
        self._task_loss = keras.metrics.Mean(name="task_loss")
        self._terms = [
            keras.metrics.Mean(name=term) for term in self.method.terms
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
    def output_names(self) -> list[str] | None:
        """The names by which Keras keys the losses of several outputs."""
        heads = self._outputs.heads
        return list(heads.names) if heads.several else None

    @property
    def _extractors(self) -> list[FeatureExtractor]:
        return [self._student_features, *self._teacher_features]

    def _given_points(self, sensing_points) -> list[SensingPoints]:
        """The sensing points that are asked for of each teacher."""
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
        peers = self.teachers if self.method.teacher_learns else []
        return [self.student, *peers, self.method]

    @property
    def resumable_variables(self) -> list[keras.Variable]:
        """All state of a training but the optimizer's."""
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
            task: What the outputs mean, one of `keras_mhgd.tasks.KINDS` or,
                for several outputs, a list or dict of them. Only needed where
                neither a softmax nor one of Keras's losses tells.
            **kwargs: Others of `keras.Model.compile`.

        Raises:
            ValueError: If there is neither a `loss` nor a method with a loss,
                or if an argument is unknown.
        """
        require_known("nonfinite", nonfinite, ["raise", "skip"])
        if loss is None and not self.method.terms:
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
        self._outputs.compile(self.method, loss, task)
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
        # `compile` makes loss objects that take a mean of what isn't one.
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
            parts = self.method.parts()
            names = [type(part).__name__ for part in parts if not part.prepared]
            of = ", ".join(repr(each.name) for each in self.teachers)
            print(f"Preparing {', '.join(names)} on {of}.")
        require_repeatable(x)
        with self.distribute_strategy.scope():
            self.method.prepare(
                _one_or_all(self._teacher_features),
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
        if isinstance(x, tf.data.Dataset):
            _, labels, _ = keras.utils.unpack_x_y_sample_weight(x.element_spec)
            self._outputs.settle(self.method, labels)
        elif _is_array(x):
            self._outputs.settle(self.method, y)
        if verbose:
            print(self._told(), end="")
        x = text_as_tensors(x)
        if not self.method.prepared:
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

    def _told(self) -> str:
        """What was decided without being asked, a line each."""
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
        return fitting.evaluate(self, text_as_tensors(x), y, **kwargs)

    def predict(self, x, **kwargs):
        return super().predict(text_as_tensors(x), **kwargs)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Under a strategy Keras 3.15 takes a mean of the replicas' batches for
        # this, which fails for text. Once metrics are built nothing is left.
        # Without labels there is nothing either.
        batch = data_batch
        if iterator is not None:
            batch = iterator._distributed_dataset.element_spec
        _, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        metrics = self._compile_metrics
        if y is not None and metrics is not None and not metrics.built:
            super()._maybe_symbolic_build(iterator, data_batch)

    def _build_training(self, x, y):
        fitting.build(self, self._student_features.shapes.outputs, x, y)

    def targets(self, x) -> Features | list[Features]:
        """Runs the teacher, or each of several, on a batch.

        Returns:
            What the method reads: see `Method.targets`.
        """
        inputs = [each.teacher(x) for each in self._views]
        return self._targets(inputs, self._teacher_features)

    def _targets(self, inputs, extractors) -> Features | list[Features]:
        found = [
            extractor.read(each).without_padding()
            for extractor, each in zip(extractors, inputs, strict=True)
        ]
        return self.method.targets(_one_or_all(found))

    def features(self, x) -> tuple[Features, Features | list[Features]]:
        """Runs all networks on a batch as in a test: nothing moves.

        Args:
            x: What the networks take, a batch.

        Returns:
            The student's and the teacher's features, as the method reads
            them; of several teachers a list.
        """
        student, *teachers = (
            self._outputs.by_head(each(x).without_padding())
            for each in self._extractors
        )
        return student, _one_or_all(teachers)

    def train_step(self, data):
        if self.nonfinite == "raise":
            logs, _ = self._step(data, self._teacher_features)
            return logs
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self._build_training(None, y)
        state = self._state
        before = [tf.identity(variable) for variable in state]
        unchecked = [each.unchecked() for each in self._teacher_features]
        _, finite = self._step(data, unchecked)
        replicas.assign_unless(finite, state, before)
        self._skipped_steps.update_state(
            replicas.once(tf.cast(~finite, tf.float32))
        )
        return self._logs(y)

    @property
    def _state(self) -> list[keras.Variable]:
        """What a step changes, but for a loss scale."""
        optimizer = self.optimizer
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer = optimizer.inner_optimizer
        metrics = [each for part in self.metrics for each in part.variables]
        return [*self.resumable_variables, *optimizer.variables, *metrics]

    def _step(self, data, teacher_features: list[FeatureExtractor]):
        """Trains on a batch: gives logs, and whether all was finite.

        The latter is `None` if it was not asked: `nonfinite="raise"`.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        rule, learns = self.method.gradient_rule, self.method.teacher_learns
        teacher, runs = None, self.method.terms and not isinstance(x, Taught)
        if isinstance(x, Taught):
            x, teacher = x.images, x.features
        first, *others = self._views
        if runs:
            view = first(x, y, sample_weight, training=self.augments)
            theirs = [view.teacher, *(each.teacher(x) for each in others)]
            x, y, sample_weight = view.student, view.y, view.sample_weight
        else:
            x, y, sample_weight = first.student(
                x, y, sample_weight, training=self.augments
            )
        if runs and not learns:
            teacher = self._targets(theirs, teacher_features)
        persistent = rule.num_backward_passes > 1 or self.gradient_norms
        with tf.GradientTape(persistent=persistent) as tape:
            student = self._student_features.read(x, training=True)
            y = self._outputs.checked_labels(y, student.outputs, sample_weight)
            peers = []
            if learns:
                peers = [
                    each.read(inputs, training=True)
                    for each, inputs in zip(
                        teacher_features, theirs, strict=True
                    )
                ]
                teacher = _one_or_all(
                    [each.without_padding() for each in peers]
                )
            terms = {}
            if self.method.terms:
                ours, theirs, labels = self._outputs.read(
                    self.method, student, _all(teacher), y, sample_weight
                )
                theirs = _one_or_all(theirs)
                terms = self.method.shares(ours, theirs, labels)
            task_loss = self._task_share(y, student, sample_weight)
            limited = self.method.limited_terms
            losses = Losses(
                task=_total(
                    [task_loss]
                    + [
                        self._task_share(y, each, sample_weight)
                        for each in peers
                    ]
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
        self._apply(gradients, finite)
        if terms:
            self.method.update(ours, theirs, labels)

        batch_size = tf.shape(tf.nest.flatten(student.outputs)[0])[0]
        losses, task_loss, terms = replicas.summed(
            (list(losses), task_loss, terms)
        )
        self._loss_tracker.update_state(_total(losses), batch_size)
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
        if y is not None:
            self.compute_metrics(x, y, student.outputs, sample_weight)
        return self._logs(y), finite

    def _apply(self, gradients, finite) -> None:
        """Updates what a loss reaches, and warns of what none does."""
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
        """What a step of training gives: metrics only if there are labels."""
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

    def _require_finite(self, gradients, losses):
        """Checks both in the graph: gradients are given once they passed."""
        gradients = finiteness.after(finiteness.checks(losses), gradients)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # That one is there to pass over gradients that overflow.
            return gradients, None
        return finiteness.after(
            finiteness.checks(self._named(gradients)), gradients
        ), None

    def _tell_finite(self, gradients, losses):
        """Gives the gradients, and whether both are finite on all replicas."""
        values = losses | self._named(gradients)
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
        """This replica's share of the task's loss on the whole batch."""
        if y is None or self._compile_loss is None:
            return tf.constant(0.0)
        outputs, masks = found.outputs, found.output_masks
        if replicas.number() > 1:
            y, outputs, sample_weight, masks = replicas.joined(
                (y, outputs, sample_weight, masks)
            )
            if masks is not None:  # Keras reads them from the tensors
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
            # Each replica has a part of the batch, and of the loss.
            self._loss_tracker.update_state(
                loss * replicas.number(), tf.shape(tf.nest.flatten(x)[0])[0]
            )
        logs = self.compute_metrics(x, y, outputs, sample_weight)
        return {name: logs[name] for name in logs if name not in of_training}

    def export(self, *args, **kwargs):
        """Exports the student alone, in inference mode.

        Takes the arguments of `keras.Model.export`. That of the student
        itself would leave random preprocessing inside of it switched on.
        """
        in_inference_mode(self.student).export(*args, **kwargs)

    def get_config(self):
        several = len(self.teachers) > 1
        points = self.sensing_points if several else [self.sensing_points]
        points = [[list(point) for point in each] for each in points]
        method = _serialized(self.method)
        if self._given_method is not None:
            method = self._given_method()
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


class _EpochCounter(keras.callbacks.Callback):
    """Counts finished epochs in a variable, which saves and resumes."""

    def __init__(self, epoch: keras.Variable):
        super().__init__()
        self._epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        self._epoch.assign_add(1.0)


def _shares(
    teachers: Sequence[keras.Model], weights: Sequence[float] | None
) -> tuple[float, ...]:
    """Weights of the teachers that add up to 1."""
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
