"""What every method of distillation is to the distiller."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.checks import require_not_negative
from keras_mhgd.features import Features
from keras_mhgd.methods.base.preparation import Preparation
from keras_mhgd.tasks import Task


class Needs(NamedTuple):
    """What a method reads of both networks.

    Attributes:
        maps: Whether it reads `Features.maps`.
        maps_before_activation: Whether it reads those.
        logits: Whether it reads `Features.logits`.
        embedding: Whether it reads `Features.embedding`.
        layers: (student layer, teacher layer) pairs, whose outputs are in
            `Features.layers`; `None` in the place of a layer that is not read.
        least_points: Sensing points that it needs, if it reads maps.
        logits_as_point: Whether the networks' logits are a last sensing point.
        tasks: Kinds of outputs that it has a meaning for, of
            `keras_mhgd.tasks.KINDS`; `None` if it reads neither outputs nor
            labels.
    """

    maps: bool = False
    maps_before_activation: bool = False
    logits: bool = False
    embedding: bool = False
    layers: tuple[tuple[str | None, str | None], ...] = ()
    least_points: int = 1
    logits_as_point: bool = False
    tasks: tuple[str, ...] | None = None

    @property
    def points(self) -> bool:
        """Whether it reads sensing points."""
        return self.maps or self.maps_before_activation

    @property
    def only_logits(self) -> bool:
        """Whether logits are all that it reads."""
        return self.fields == ("logits",) and not self.layers

    @property
    def outputs(self) -> bool:
        """Whether it compares what the networks predict."""
        return self.logits or not (self.fields or self.layers)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of `Features` that it reads, but for `layers`."""
        return tuple(
            name
            for name in (
                "maps",
                "maps_before_activation",
                "logits",
                "embedding",
            )
            if getattr(self, name)
        )


def joined_needs(needs: Iterable[Needs]) -> Needs:
    """Computes what several methods read together.

    Of `tasks`, which each method has for itself, there are none.
    """
    needs = list(needs)
    layers = dict.fromkeys(pair for each in needs for pair in each.layers)
    return Needs(
        *(
            any(getattr(each, name) for each in needs)
            for name in (
                "maps",
                "maps_before_activation",
                "logits",
                "embedding",
            )
        ),
        layers=tuple(layers),
        least_points=max((each.least_points for each in needs), default=1),
        logits_as_point=any(each.logits_as_point for each in needs),
    )


class Method(keras.Layer):
    """A method of distillation: loss terms, and what they need.

    A subclass makes its auxiliary weights in `build`, computes its terms in
    `call`, and names them in `terms`. It is a tracked Keras layer, so its
    weights train, save and resume with the distiller.

    Args:
        weight: Multiplier of the method's terms, >= 0. Once the method is
            built it is a variable that a callback can change, as in
            `method.weight.assign(0.5)`.

    Attributes:
        gradient_rule: How the gradient of its terms joins that of all others:
            see `keras_mhgd.gradients`.
        preparation: What it learns before the student trains, a
            `Preparation`; or `None`.
        task: What the outputs mean that it reads, once that is settled.

    Call arguments:
        student: `Features` of the student, in training mode.
        teacher: `Features` of the frozen teacher.
        labels: Class numbers `(rows,)`, -1 where there is none, or 0 and 1
            `(rows, outputs)` of independent labels; `None` where the data has
            no labels of classes. See `keras_mhgd.tasks.Rows`.

    Returns:
        A dict of scalars, float32: one for each of `terms`.
    """

    terms: tuple[str, ...] = ()
    """Names of the loss terms, in the history and the progress bar."""

    needs = Needs(maps=True)
    """What it reads of both networks."""

    spans: str = "batch"
    """Over what a term is computed where several replicas share a batch:
    `"batch"`, the whole; `"sample"`, a mean of what each sample gives by
    itself; `"replica"`, each replica's part, whose terms are added.
    """

    trains_teacher: bool = False
    """Whether the teacher trains along, by terms of the method: then it runs
    in training mode, and its features carry gradients.
    """

    preparation: Preparation | None = None

    def __init__(self, weight: float = 1.0, **kwargs):
        require_not_negative(weight=weight)
        super().__init__(**{"dtype": "float32", **kwargs})
        self.weight = weight
        self.gradient_rule = gradients.Sum()
        self.task = Task()

    def build(self, student: Features, teacher: Features) -> None:
        """Makes weights for features of the given shapes.

        A subclass calls this first.

        Raises:
            ValueError: If the method reads maps and there are too few.
        """
        least = self.needs.least_points
        if self.needs.points and len(student.maps) < least:
            raise ValueError(
                f"`sensing_points` must give {type(self).__name__} "
                f"{least} or more layers. Received: "
                f"{len(student.maps)}. Add layers of both networks."
            )
        self.weight = self.add_weight(
            name="weight",
            shape=(),
            initializer=keras.initializers.Constant(self.weight),
            trainable=False,
        )

    def get_build_config(self):
        """Nothing: the distiller builds the method anew."""

    def targets(self, teacher: Features) -> Features:
        """Reduces the teacher's features to what is read of them.

        Runs outside of the gradient's tape, and once for all epochs where
        there is a `keras_mhgd.TeacherCache`.
        """
        # Points may be there for another method.
        return teacher if self.needs.points else teacher.without_points()

    def reduce(
        self, student: Features, teacher: Features
    ) -> tuple[Features, Features]:
        """Reduces both to what `call` reads, before replicas join it.

        Args:
            student: The student's features.
            teacher: The teacher's `targets`.
        """
        fields = self.needs.fields
        return student.only(fields), teacher.only(fields)

    def call(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        raise NotImplementedError(
            f"{type(self).__name__} must implement `call`."
        )

    def update(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> None:
        """Moves state that no gradient trains, such as a memory.

        Called once a training step, after the optimizer, with the arguments
        of `call` for the whole batch, on each replica alike. `call` changes
        nothing itself.
        """

    def compute_mask(self, inputs, previous_mask):
        """Nothing: terms have no positions, whatever masks come in."""

    def get_config(self):
        weight = self.weight
        if self.built:
            # By its shortest decimal: 0.9, not 0.899999976.
            weight = float(str(weight.numpy()))
        return {**super().get_config(), "weight": weight}
