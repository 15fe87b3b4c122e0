"""Defines the interface between distillation methods and the distiller."""

from collections.abc import Iterable
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.checks import require_not_negative
from keras_mhgd.features import Features
from keras_mhgd.methods.base.preparation import Preparation
from keras_mhgd.tasks import Task

_FIELDS = (
    *("outputs", "maps", "maps_before_activation"),
    *("logits", "embedding", "last_map", "logit_map"),
)


class Needs(NamedTuple):
    """Lists what a method reads of both networks.

    Attributes:
        outputs: Whether the method reads `Features.outputs`.
        maps: Whether the method reads `Features.maps`.
        maps_before_activation: Whether the method reads
            `Features.maps_before_activation`.
        logits: Whether the method reads `Features.logits`.
        embedding: Whether the method reads `Features.embedding`.
        last_map: Whether the method reads `Features.last_map`.
        logit_map: Whether the method reads `Features.logit_map`.
        layers: (student layer, teacher layer) pairs, whose outputs are in
            `Features.layers`; `None` instead of a layer that is not read.
        least_points: Smallest number of sensing points, if the method reads
            maps.
        logits_as_point: Whether the networks' logits are used as an
            additional, last sensing point.
        tasks: Kinds of outputs that the method is defined for, from
            `keras_mhgd.tasks.KINDS`; `None` if the method reads neither
            outputs nor labels.
        labels: Whether samples without a label teach nothing. The method
            leaves them out.
    """

    outputs: bool = False
    maps: bool = False
    maps_before_activation: bool = False
    logits: bool = False
    embedding: bool = False
    last_map: bool = False
    logit_map: bool = False
    layers: tuple[tuple[str | None, str | None], ...] = ()
    least_points: int = 1
    logits_as_point: bool = False
    tasks: tuple[str, ...] | None = None
    labels: bool = False

    @property
    def points(self) -> bool:
        """Whether the method reads sensing points."""
        return self.maps or self.maps_before_activation

    @property
    def only_logits(self) -> bool:
        """Whether the method reads nothing but logits."""
        return self.fields == ("logits",) and not self.layers

    @property
    def predictions(self) -> bool:
        """Whether the method reads the networks' predictions or logits."""
        return self.outputs or self.logits

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of `Features` that the method reads, except `layers`."""
        return tuple(name for name in _FIELDS if getattr(self, name))


def joined_needs(needs: Iterable[Needs]) -> Needs:
    """Joins the needs of several methods.

    `tasks` and `labels` keep their defaults, because each method has its own.
    """
    needs = list(needs)
    layers = dict.fromkeys(pair for each in needs for pair in each.layers)
    return Needs(
        **{
            name: any(getattr(each, name) for each in needs) for name in _FIELDS
        },
        layers=tuple(layers),
        least_points=max((each.least_points for each in needs), default=1),
        logits_as_point=any(each.logits_as_point for each in needs),
    )


class Method(keras.Layer):
    """Computes the loss terms of a distillation method.

    A subclass makes its auxiliary weights in `build`, computes its terms in
    `call`, and names them in `terms`. A method is a tracked Keras layer, so
    its weights train, save and resume with the distiller.

    Args:
        weight: Multiplier of the method's terms, >= 0. Once the method is
            built, `weight` is a variable that a callback can change, as in
            `method.weight.assign(0.5)`.

    Attributes:
        gradient_rule: How the gradient of the method's terms is combined with
            the gradient of all other losses: see `keras_mhgd.gradients`.
        preparation: The method's own training before the student's, a
            `Preparation`; `None` if the method has none.
        task: What the outputs that the method reads mean, a `Task`. The
            distiller sets it.

    Call arguments:
        student: `Features` of the student, in training mode, as `reduce` gives
            them: only the fields that `needs` names.
        teacher: `Features` of the frozen teacher, likewise.
        labels: Class numbers `(rows,)`, -1 for rows without a label; or 0 and
            1 `(rows, outputs)` for independent labels; `None` if the data has
            no class labels, or if `needs` has no `tasks`. See
            `keras_mhgd.tasks.Rows`.

    Returns:
        A dict of scalars, float32: one for each name in `terms`.
    """

    terms: tuple[str, ...] = ()
    """Names of the loss terms, in the history and the progress bar."""

    needs = Needs(maps=True)
    """What the method reads of both networks."""

    spans: str = "batch"
    """How a term is computed if several replicas share a batch.

    `"batch"`: from the whole batch at once. `"sample"`: from each replica's
    part, and then averaged over the samples, for means of values that each
    depend on one sample. `"replica"`: from each replica's part, and then added.
    """

    trains_teacher: bool = False
    """Whether the method's terms train the teacher too. The teacher then runs
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
        """Makes the method's weights for features of the given shapes.

        A subclass calls this method first in its own `build`.

        Args:
            student: The shapes of the student's features: `Features` with a
                tuple in place of each tensor. A size that is unknown is `None`.
            teacher: The shapes of the teacher's features, likewise.

        Raises:
            ValueError: If the method reads maps and there are too few sensing
                points.
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
        """Gives `None`: the distiller builds a loaded method itself."""

    def targets(self, teacher: Features) -> Features:
        """Reduces the teacher's features to those that the method reads.

        Runs once per step, outside the student's gradient tape unless the
        method `trains_teacher`. With a `keras_mhgd.TeacherCache` it runs once
        for all epochs.

        Args:
            teacher: The teacher's features of a batch.

        Returns:
            The features that `reduce` gets.
        """
        # Another method may have asked for the sensing points.
        return teacher if self.needs.points else teacher.without_points()

    def reduce(
        self, student: Features, teacher: Features
    ) -> tuple[Features, Features]:
        """Reduces both networks' features to those that `call` reads.

        Runs on each replica, before the replicas join their parts of a batch.

        Args:
            student: The student's features.
            teacher: The teacher's `targets`.

        Returns:
            The student's and the teacher's features for `call`.
        """
        fields = [*self.needs.fields, *(["layers"] * bool(self.needs.layers))]
        return student.only(fields), teacher.only(fields)

    def call(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Computes the terms of a batch. Each subclass defines it.

        Args:
            student: See the call arguments of the class.
            teacher: Likewise.
            labels: Likewise.

        Returns:
            A scalar for each name in `terms`, by name.
        """
        raise NotImplementedError(
            "A method must implement `call`. Received: "
            f"{type(self).__name__}, which doesn't. Give it a `call` that "
            "returns its losses by their names."
        )

    def update(
        self, student: Features, teacher: Features, labels: tf.Tensor
    ) -> None:
        """Updates state that no gradient trains, such as a memory bank.

        Runs once per training step, after the optimizer's update. Every
        replica gets the whole batch. `call` itself must not change any state.

        Args:
            student: As for `call`.
            teacher: As for `call`.
            labels: As for `call`.
        """

    def compute_mask(self, inputs, previous_mask):
        """Gives `None`: loss terms have no positions to mask."""

    def get_config(self):
        weight = self.weight
        if self.built:
            # The shortest decimal of the float32: 0.9, not 0.899999976.
            weight = float(str(weight.numpy()))
        return {**super().get_config(), "weight": weight}
