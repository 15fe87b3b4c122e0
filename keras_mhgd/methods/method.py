"""What every method of distillation is to the distiller."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_mhgd import gradients, replicas
from keras_mhgd.features import FeatureExtractor, Features
from keras_mhgd.tasks import Task


class Method(keras.Layer):
    """A method of distillation: loss terms, and what they need.

    A subclass makes its auxiliary weights in `build`, computes its terms in
    `call`, and names them in `terms`. It is a tracked Keras layer, so its
    weights train, save and resume with the distiller.

    Args:
        weight: Multiplier of the method's terms, >= 0. Once the method is
            built it is a variable that a callback can change, as in
            `method.weight.assign(0.5)`.

    Call arguments:
        student: `Features` of the student, in training mode.
        teacher: `Features` of the frozen teacher, or their `targets`.
        labels: Class numbers `(rows,)`, -1 where there is none, or 0 and 1
            `(rows, outputs)` of independent labels; `None` where the data has
            no labels of classes. See `keras_mhgd.tasks.Rows`.

    Returns:
        A dict of scalars, float32: one for each of `terms`.
    """

    terms: tuple[str, ...] = ()
    """Names of the loss terms, in the history and the progress bar."""

    needs: tuple[str | tuple[str, str], ...] = ("maps",)
    """Which features it reads: `"maps"`, `"maps_before_activation"`,
    `"logits"`, `"embedding"`, or (student layer, teacher layer) pairs, whose
    outputs are in `Features.layers`.
    """

    min_points: int = 1
    """Sensing points that it needs, if it reads maps."""

    senses_logits: bool = False
    """Whether the networks' logits are a last sensing point."""

    teacher_learns: bool = False
    """Whether the teacher trains along, by terms of the method: then it runs
    in training mode, and its features carry gradients.
    """

    tasks: tuple[str, ...] | None = None
    """Kinds of outputs that it has a meaning for, of `keras_mhgd.tasks.KINDS`;
    `None` if it doesn't compare outputs.
    """

    per_sample: bool = False
    """Whether the terms are means over samples of what each gives by itself.
    Then replicas compute them apart, else on the whole batch.
    """

    def __init__(self, weight: float = 1.0, **kwargs):
        if weight < 0:
            raise ValueError(
                f"`weight` must be 0 or more. Received: weight={weight}."
            )
        super().__init__(**{"dtype": "float32", **kwargs})
        self.weight = weight
        self.gradient_rule = gradients.Sum()
        self.task = Task()

    @property
    def reads_points(self) -> bool:
        """Whether it needs sensing points."""
        return "maps" in self.needs or "maps_before_activation" in self.needs

    @property
    def reads_outputs(self) -> bool:
        """Whether it compares what the networks predict."""
        return "logits" in self.needs or not self.needs

    @property
    def reads_only_scores(self) -> bool:
        """Whether logits are all that it reads."""
        return tuple(self.needs) == ("logits",)

    def read_as(self, task: Task) -> None:
        """Takes over what the networks' outputs mean.

        Raises:
            ValueError: If the method has no meaning there.
        """
        if self.tasks is not None and task.kind not in self.tasks:
            raise ValueError(
                f"{type(self).__name__} must get outputs that are "
                f"{' or '.join(self.tasks)}. Received: a {task.kind} output. "
                "Choose another method, such as 'soft_logits' or one on "
                "feature maps, or pass another `task` to `compile`."
            )
        self.task = task

    # No property: Keras would look for weights in what it gives.
    def parts(self) -> list["Method"]:
        """The methods that it consists of: itself, or several."""
        return [self]

    def heads(self) -> list[str | None]:
        """The output that each of `parts` reads; `None` for the only one."""
        return [None]

    @property
    def limited_terms(self) -> tuple[str, ...]:
        """Terms whose gradient `gradient_rule` weighs against all others."""
        return self.terms

    @property
    def limited_variables(self) -> list[keras.Variable]:
        """Variables of its own that those terms train."""
        return self.trainable_variables

    @property
    def prepared(self) -> bool:
        """Whether the student can train: nothing is left to prepare."""
        return True

    def prepare(
        self,
        teacher: FeatureExtractor,
        student: FeatureExtractor,
        **fit_arguments: Any,
    ) -> None:
        """Learns what must be known before the student trains.

        Args:
            teacher: The teacher's predictions and sensing points.
            student: The student's.
            **fit_arguments: The data, as `keras.Model.fit` takes it, and
                `fit`: what is called in its place, with the model that is
                trained and the arguments.
        """

    def artifacts(self) -> Mapping[str, keras.Model]:
        """Networks that it learns before the student trains, by name."""
        return {}

    def build(self, student: Features, teacher: Features) -> None:
        """Makes weights for features of the given shapes.

        A subclass calls this first.

        Raises:
            ValueError: If the method reads maps and there are too few.
        """
        self._require_points(student)
        self.weight = self.add_weight(
            name="weight",
            shape=(),
            initializer=keras.initializers.Constant(self.weight),
            trainable=False,
        )

    def _require_points(self, student: Features) -> None:
        if self.reads_points and len(student.maps) < self.min_points:
            raise ValueError(
                f"`sensing_points` must give {type(self).__name__} "
                f"{self.min_points} or more layers. Received: "
                f"{len(student.maps)}. Add layers of both networks."
            )

    def get_build_config(self):
        """Nothing: the distiller builds the method anew."""

    def targets(self, teacher: Features) -> Features:
        """Reduces the teacher's features to what `call` reads of them.

        Runs outside of the gradient's tape, and once for all epochs where
        there is a `keras_mhgd.TeacherCache`.
        """
        # Points may be there for another method.
        return teacher if self.reads_points else teacher.without_points()

    def call(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        raise NotImplementedError(
            f"{type(self).__name__} must implement `call`."
        )

    def joined(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> tuple[Features, Features, tf.Tensor]:
        """Joins what `call` reads of the replicas' parts of a batch."""
        if not self.reads_points:
            student = student.without_points()
            teacher = teacher.without_points()
        return replicas.joined((student, teacher, labels))

    def count(self, student: Features, labels: tf.Tensor | None) -> tf.Tensor:
        """Counts what the means of a `per_sample` method are over.

        Returns:
            Scalar: a replica's number of samples, or of rows that count.
        """
        outputs = tf.nest.flatten(student.outputs)
        return tf.shape(replicas.with_samples(outputs[0]))[0]

    def shares(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes a replica's shares of the terms of a batch.

        Args:
            student: The student's features of this replica's part.
            teacher: The teacher's.
            labels: The labels.

        Returns:
            A scalar for each of `terms`: over the replicas they add up to the
            terms of the whole batch.
        """
        # Padding is unevenly spread: its means are those of the whole batch.
        padded = student.masks is not None or teacher.masks is not None
        if self.per_sample and not (padded and self.reads_points):
            part = replicas.share_of(self.count(student, labels))
            terms = self(student, teacher, labels)
            return {name: part * terms[name] for name in terms}
        terms = self(*self.joined(student, teacher, labels))
        return {name: replicas.share(terms[name]) for name in terms}

    def update(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> None:
        """Moves state that no gradient trains, such as a memory.

        Called once a training step, after the optimizer, with the arguments
        of `call`, which changes nothing itself. Of several replicas, each
        must come to the same state: see `joined`.
        """

    def compute_mask(self, inputs, previous_mask):
        """Nothing: terms have no positions, whatever masks come in."""

    def get_config(self):
        weight = self.weight
        if self.built:
            # By its shortest decimal: 0.9, not 0.899999976.
            weight = float(str(weight.numpy()))
        return {**super().get_config(), "weight": weight}
