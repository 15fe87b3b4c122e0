"""Applies the methods of a distillation, each to the features it reads."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.distribution import replicas
from keras_mhgd.features import FeatureExtractor, Features
from keras_mhgd.methods import Identifier, parts
from keras_mhgd.methods.base.method import Method
from keras_mhgd.outputs import Heads


class Place(NamedTuple):
    """Says which output, teacher and sensing points a method reads.

    Attributes:
        head: Name of the output; `None` for networks with one output, and for
            a method that reads no output.
        teacher: Index of the teacher; `None` for the average of all teachers.
        points: Indices of the student's sensing points that are paired with
            this teacher's; `None` for all.
        weight: Multiplier of the terms, which is the teacher's weight.
    """

    head: str | None = None
    teacher: int | None = None
    points: tuple[int, ...] | None = None
    weight: float = 1.0

    @property
    def suffix(self) -> str:
        """The suffix for the names of the terms."""
        head = "" if self.head is None else f"_{self.head}"
        return head + ("" if self.teacher is None else f"_{self.teacher}")

    def of_student(self, found: Features) -> Features:
        """Picks the student's features that the method reads."""
        return found.at(self.head, self.points)

    def of_teachers(self, found: Sequence[Features]) -> Features:
        """Picks the teacher's features that the method reads."""
        return found[self.teacher or 0].at(self.head, None)

    def of_labels(self, found: Any) -> Any:
        """Picks the labels that the method reads."""
        if isinstance(found, dict):
            return found[self.head] if self.head is not None else None
        return found


class Transfer:
    """Applies all methods of a distillation, each at its `Place`.

    The terms of all methods are added. A method may limit its gradient, as MHGD
    does by clipping. The limit is relative to the gradient of the task and of
    all other methods, which the limited gradient therefore can't outweigh.
    Terms with equal names are numbered, as in `soft_logits` and
    `soft_logits_2`.

    Args:
        methods: The methods.
        places: The place of each method.

    Attributes:
        terms: The names of all terms.
        gradient_rule: The rule of the methods that limit their gradient. If no
            method does, it is `Sum`.

    Raises:
        ValueError: If two methods limit their gradient by different rules.
    """

    def __init__(self, methods: Sequence[Method], places: Sequence[Place]):
        self.methods = list(methods)
        self.places = list(places)
        self._names = _unique_names(self.methods, self.places)
        self.terms = tuple(
            name for names in self._names for name in names.values()
        )
        require_one_rule(self.methods)
        self._limiting = limiting(self.methods)
        self.gradient_rule = gradients.Sum()
        if self._limiting:
            self.gradient_rule = self._limiting[0].gradient_rule
        self.trains_teacher = any(
            method.trains_teacher for method in self.methods
        )

    def __iter__(self):
        return zip(self.methods, self.places, self._names, strict=True)

    @property
    def limited_terms(self) -> list[str]:
        """The names of the terms whose gradient the rule limits.

        These are all terms if no method limits its gradient.
        """
        return [
            name
            for method, _, names in self
            if method in self._limiting or not self._limiting
            for name in names.values()
        ]

    @property
    def limited_variables(self) -> list[keras.Variable]:
        """The trainable variables of the methods that limit their gradient."""
        return [
            variable
            for method in self._limiting
            for variable in method.trainable_variables
        ]

    @property
    def prepared(self) -> bool:
        """Whether the student can train: all methods are prepared."""
        return not self.unprepared

    @property
    def unprepared(self) -> list[Method]:
        """The methods that must still learn before the student can train."""
        return [
            method
            for method in self.methods
            if method.preparation and not method.preparation.done
        ]

    @property
    def networks(self) -> dict[str, keras.Model]:
        """The networks that methods learn from the teachers alone, by name."""
        taken: set[str] = set()
        return {
            _numbered(name + place.suffix, taken): network
            for method, place, _ in self
            if method.preparation
            for name, network in method.preparation.networks.items()
        }

    def prepare(
        self,
        teachers: Sequence[FeatureExtractor],
        student: FeatureExtractor,
        **fit_arguments: Any,
    ) -> None:
        """Prepares the methods that need it: see `Preparation.run`."""
        for method, place, _ in self:
            if method in self.unprepared:
                method.preparation.run(
                    teachers[place.teacher or 0],
                    student.at_points(place.points),
                    shares=functools.partial(shares_of, method),
                    **fit_arguments,
                )

    def build(self, student: Features, teachers: Sequence[Features]) -> None:
        """Builds the methods for features of the given shapes."""
        for method, place, _ in self:
            method.build(place.of_student(student), place.of_teachers(teachers))

    def targets(self, teachers: Sequence[Features]) -> list[Features]:
        """Reduces each teacher's features to what the methods read."""
        return [
            _fullest(
                [
                    method.targets(found)
                    for method, place, _ in self
                    if place.teacher in (None, number)
                ]
            )
            for number, found in enumerate(teachers)
        ]

    def shares(
        self, student: Features, teachers: Sequence[Features], labels: Any
    ) -> dict[str, tf.Tensor]:
        """Computes a replica's shares of all terms, by name."""
        terms = {}
        for method, place, names in self:
            if not names:
                continue  # this method only initialises the student
            found = shares_of(
                method,
                place.of_student(self._read_by(method, student)),
                place.of_teachers(teachers),
                place.of_labels(labels),
            )
            terms |= {
                name: place.weight * found[term] for term, name in names.items()
            }
        return terms

    def update(
        self, student: Features, teachers: Sequence[Features], labels: Any
    ) -> None:
        """Updates the methods' state that no gradient trains."""
        for method, place, _ in self:
            _update(
                method,
                place.of_student(student),
                place.of_teachers(teachers),
                place.of_labels(labels),
            )

    def _read_by(self, method: Method, student: Features) -> Features:
        return student.forked() if method in self._limiting else student


def shares_of(
    method: Method,
    student: Features,
    teacher: Features,
    labels: tf.Tensor | None,
) -> dict[str, tf.Tensor]:
    """Computes a replica's shares of the terms of a batch.

    Args:
        method: The method. Its `spans` decide how shares are computed.
        student: The student's features of this replica's part.
        teacher: The teacher's `targets`.
        labels: The labels.

    Returns:
        A scalar for each of `terms`. The scalars of all replicas add up to the
        terms of the whole batch.
    """
    count = functools.partial(_count, method, student)
    student, teacher = method.reduce(student, teacher)
    # Replicas differ in their number of padded positions. So means over real
    # positions must be taken over the whole batch.
    padded = method.needs.points and (
        student.masks is not None or teacher.masks is not None
    )
    if method.spans == "replica":
        return method(student, teacher, labels)
    if method.spans == "sample" and not padded:
        part = replicas.share_of(count())
        terms = method(student, teacher, labels)
        return {name: part * terms[name] for name in terms}
    terms = method(*replicas.joined((student, teacher, labels)))
    return {name: replicas.share(terms[name]) for name in terms}


def _update(
    method: Method,
    student: Features,
    teacher: Features,
    labels: tf.Tensor | None,
) -> None:
    """Calls a method's `update` for the whole batch: see `shares_of`."""
    if type(method).update is Method.update:
        return  # nothing to update, so no arguments need be computed
    reduced = method.reduce(student, teacher)
    method.update(*replicas.joined((*reduced, labels)))


def _count(method: Method, student: Features) -> tf.Tensor:
    """Counts the rows or samples that a method's means are taken over."""
    if method.needs.logits and student.weights is not None:
        return tf.reduce_sum(student.weights)
    first = student.logits if method.needs.logits else student.outputs
    first = tf.nest.flatten(first)[0]
    return tf.shape(replicas.with_samples(first))[0]


def is_by_head(method: Any) -> bool:
    """Checks whether `method` is a dict of methods by the outputs' names.

    The configuration of one method is a dict too, with a `class_name`.
    """
    return isinstance(method, Mapping) and "class_name" not in method


def asked_for(
    method: Identifier | Sequence[Identifier] | Mapping[str, Identifier],
    heads: Heads,
) -> list[tuple[Method, str | None]]:
    """Lists the methods, each with the output that the user named for it.

    Args:
        method: One method, several, or a dict of methods by the outputs' names,
            which may leave out outputs.
        heads: The outputs.

    Returns:
        Pairs of a method and an output's name, `None` where none is named.
    """
    if is_by_head(method) and not heads.several:
        raise ValueError(
            "`method` must be one for all, or a list, for networks with one "
            f"output. Received: methods for outputs {list(method)}."
        )
    if not is_by_head(method):
        return [(part, None) for part in parts(method)]
    return [
        (part, head)
        for head, one in heads.split(method).items()
        if one is not None
        for part in parts(one)
    ]


def placed(
    asked: Sequence[tuple[Method, str | None]],
    heads: Heads,
    points: Sequence[str],
    pairs: Sequence[Sequence[tuple[str, str]]],
    teacher_weights: Sequence[float],
) -> Transfer:
    """Assigns methods to the outputs and teachers that they read.

    A method that reads outputs is placed at every output, unless the user named
    one. A method that does not read logits alone is placed at every teacher. A
    method is copied for each further place. All copies of a method share its
    gradient rule.

    Args:
        asked: The methods and outputs that `asked_for` lists.
        heads: The outputs.
        points: The student's sensing points.
        pairs: Sensing points of student and teacher, for each teacher.
        teacher_weights: Weights of the teachers.
    """
    made: list[Method] = []
    places = []
    for method, head in asked:
        names = heads.names if method.needs.predictions else (None,)
        if head and method.needs.predictions:
            names = (head,)
        numbers = [None]
        if len(pairs) > 1 and not method.needs.only_logits:
            numbers = range(len(pairs))
        for name, number in itertools.product(names, numbers):
            place = Place(name)
            if number is not None:
                own = [points.index(ours) for ours, _ in pairs[number]]
                place = Place(name, number, tuple(own), teacher_weights[number])
            made.append(_copy(method) if method in made else method)
            places.append(place)
    return Transfer(made, places)


def limiting(methods: Iterable[Method]) -> list[Method]:
    """Finds the methods that limit their gradient."""
    return [
        method
        for method in methods
        if not isinstance(method.gradient_rule, gradients.Sum)
    ]


def require_one_rule(methods: Iterable[Method]) -> None:
    """Raises if methods limit their gradient by different rules."""
    found = limiting(methods)
    if len({id(method.gradient_rule) for method in found}) > 1:
        raise ValueError(
            "`method` must have at most one that limits its gradient. "
            f"Received: {[type(method).__name__ for method in found]}. "
            "Pass clipping=None to the others."
        )


def _copy(method: Method) -> Method:
    """Copies a method. Both have equal arguments and share a gradient rule."""
    copy = type(method).from_config(method.get_config())
    copy.gradient_rule = method.gradient_rule
    return copy


def _unique_names(
    methods: Sequence[Method], places: Sequence[Place]
) -> list[dict[str, str]]:
    """Maps the names of each method's terms to names that are unique."""
    taken: set[str] = set()
    found = []
    for method, place in zip(methods, places, strict=True):
        found.append(
            {
                term: _numbered(term + place.suffix, taken)
                for term in method.terms
            }
        )
    return found


def _numbered(name: str, taken: set[str]) -> str:
    """Appends a number to a name that is taken, and takes the result."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def _fullest(found: Sequence[Features]) -> Features:
    """Joins features that different methods have reduced.

    A field that one method leaves out may be needed by another.
    """

    def fullest(values):
        known = [value for value in values if value is not None]
        if known and isinstance(known[0], list):
            return max(known, key=len)
        return known[0] if known else None

    return Features(*map(fullest, zip(*found, strict=True)))
