"""The methods of a distillation, each with what it reads."""

import collections
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mhgd import gradients
from keras_mhgd.distribution import replicas
from keras_mhgd.features import FeatureExtractor, Features
from keras_mhgd.methods import Identifier, parts
from keras_mhgd.methods.base.method import Method, joined_needs
from keras_mhgd.outputs import Heads


class Place(NamedTuple):
    """What a method reads of networks that have several outputs or teachers.

    Attributes:
        head: Name of the output; `None` for networks with one output, and
            for a method that reads none.
        teacher: Number of the teacher; `None` for the average of all.
        points: Numbers of the student's sensing points that belong to this
            teacher's; `None` for all.
        share: Multiplier of the terms, which is the teacher's weight.
    """

    head: str | None = None
    teacher: int | None = None
    points: tuple[int, ...] | None = None
    share: float = 1.0

    @property
    def suffix(self) -> str:
        """What is added to the names of the terms."""
        head = "" if self.head is None else f"_{self.head}"
        return head + ("" if self.teacher is None else f"_{self.teacher}")

    def of_student(self, found: Features) -> Features:
        """Picks from what the student gives."""
        return found.at(self.head, self.points)

    def of_teachers(self, found: Sequence[Features]) -> Features:
        """Picks from what the teachers give."""
        return found[self.teacher or 0].at(self.head, None)

    def of_labels(self, found: Any) -> Any:
        """Picks from the labels."""
        if isinstance(found, dict):
            return found[self.head] if self.head is not None else None
        return found


class Transfer:
    """All methods of a distillation, each with what it reads.

    The terms of all are added. If a method limits its gradient, as MHGD does
    by clipping, it is limited against the gradient of the task and of all
    other methods: it can't drown them. Terms with the same name are numbered,
    as `soft_logits` and `soft_logits_2`.

    Args:
        methods: The methods.
        places: What each reads.

    Attributes:
        terms: The names of all terms.
        needs: What all methods read together.
        gradient_rule: That of the methods that limit their gradient.

    Raises:
        ValueError: If two limit their gradient.
    """

    def __init__(self, methods: Sequence[Method], places: Sequence[Place]):
        self.methods = list(methods)
        self.places = list(places)
        self._names = _unique_names(self.methods, self.places)
        self.terms = tuple(
            name for names in self._names for name in names.values()
        )
        self._limiting = [
            method
            for method in self.methods
            if not isinstance(method.gradient_rule, gradients.Sum)
        ]
        require_one_rule(self._limiting)
        self.gradient_rule = gradients.Sum()
        if self._limiting:
            self.gradient_rule = self._limiting[0].gradient_rule
        self.needs = joined_needs(method.needs for method in self.methods)
        self.trains_teacher = any(
            method.trains_teacher for method in self.methods
        )

    def __iter__(self):
        return zip(self.methods, self.places, self._names, strict=True)

    @property
    def limited_terms(self) -> list[str]:
        """Terms whose gradient the rule weighs against all others."""
        return [
            name
            for method, _, names in self
            if method in self._limiting or not self._limiting
            for name in names.values()
        ]

    @property
    def limited_variables(self) -> list[keras.Variable]:
        """Variables of the methods that those terms train."""
        return [
            variable
            for method in self._limiting
            for variable in method.trainable_variables
        ]

    @property
    def prepared(self) -> bool:
        """Whether the student can train."""
        return not self.unprepared

    @property
    def unprepared(self) -> list[Method]:
        """The methods that have something to learn before."""
        return [
            method
            for method in self.methods
            if method.preparation and not method.preparation.done
        ]

    @property
    def networks(self) -> dict[str, keras.Model]:
        """What the methods have learnt from the teachers alone, by name."""
        return {
            name + place.suffix: network
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
        """Lets the methods learn what they must: see `Preparation.run`."""
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
                continue  # it initialised the student
            found = shares_of(
                method,
                place.of_student(self._read_by(method, student)),
                place.of_teachers(teachers),
                place.of_labels(labels),
            )
            terms |= {
                name: place.share * found[term] for term, name in names.items()
            }
        return terms

    def update(
        self, student: Features, teachers: Sequence[Features], labels: Any
    ) -> None:
        """Moves the methods' state that no gradient trains."""
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
        method: The method; its `spans` say how.
        student: The student's features of this replica's part.
        teacher: The teacher's `targets`.
        labels: The labels.

    Returns:
        A scalar for each of `terms`: over the replicas they add up to the
        terms of the whole batch.
    """
    student, teacher = method.reduce(student, teacher)
    # Padding is unevenly spread: its means are those of the whole batch.
    padded = method.needs.points and (
        student.masks is not None or teacher.masks is not None
    )
    if method.spans == "replica":
        return method(student, teacher, labels)
    if method.spans == "sample" and not padded:
        part = replicas.share_of(_count(method, student))
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
        return  # what it would get is not computed for nothing
    reduced = method.reduce(student, teacher)
    method.update(*replicas.joined((*reduced, labels)))


def _count(method: Method, student: Features) -> tf.Tensor:
    """Counts what the means of a method are over: rows, or samples."""
    if method.needs.logits and student.weights is not None:
        return tf.reduce_sum(student.weights)
    first = student.logits if method.needs.logits else student.outputs
    first = tf.nest.flatten(first)[0]
    return tf.shape(replicas.with_samples(first))[0]


def is_by_head(method: Any) -> bool:
    """Whether it is a dict of methods, and no configuration of one."""
    return isinstance(method, Mapping) and "class_name" not in method


def asked_for(
    method: Identifier | Sequence[Identifier] | Mapping[str, Identifier],
    heads: Heads,
) -> list[tuple[Method, str | None]]:
    """Lists methods one by one, each with the output that it is asked for.

    Args:
        method: One or several, or one for some of the outputs by their names.
        heads: The outputs.

    Returns:
        Methods, with `None` where no output is named.
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
    shares: Sequence[float],
) -> Transfer:
    """Puts methods where they read.

    One that reads outputs is there for each output, if none is named; one
    that reads more than scores for each teacher. All copies of one that
    limits its gradient do so together.

    Args:
        asked: What `asked_for` gives.
        heads: The outputs.
        points: The student's sensing points.
        pairs: Sensing points of student and teacher, for each teacher.
        shares: Weights of the teachers.
    """
    made: list[Method] = []
    places = []
    for method, head in asked:
        names = heads.names if method.needs.outputs else (None,)
        if head and method.needs.outputs:
            names = (head,)
        numbers = [None]
        if len(pairs) > 1 and not method.needs.only_logits:
            numbers = range(len(pairs))
        for name, number in itertools.product(names, numbers):
            place = Place(name)
            if number is not None:
                own = [points.index(ours) for ours, _ in pairs[number]]
                place = Place(name, number, tuple(own), shares[number])
            made.append(_copy(method) if method in made else method)
            places.append(place)
    return Transfer(made, places)


def require_one_rule(limiting: Sequence[Method]) -> None:
    """Raises if methods limit their gradient that are none's copies."""
    if len({id(method.gradient_rule) for method in limiting}) > 1:
        raise ValueError(
            "`method` must have at most one that limits its gradient. "
            f"Received: {[type(method).__name__ for method in limiting]}. "
            "Pass clipping=None to the others."
        )


def _copy(method: Method) -> Method:
    """Another method with the same arguments, and the same gradient rule."""
    copy = type(method).from_config(method.get_config())
    copy.gradient_rule = method.gradient_rule
    return copy


def _unique_names(
    methods: Sequence[Method], places: Sequence[Place]
) -> list[dict[str, str]]:
    """Names the terms: for each method its own names and those they get."""
    taken, found = collections.Counter(), []
    for method, place in zip(methods, places, strict=True):
        names = {}
        for term in method.terms:
            name = term + place.suffix
            taken[name] += 1
            number = taken[name]
            names[term] = name if number == 1 else f"{name}_{number}"
        found.append(names)
    return found


def _fullest(found: Sequence[Features]) -> Features:
    """Joins reduced features: what one method leaves out another may need."""

    def fullest(values):
        known = [value for value in values if value is not None]
        if known and isinstance(known[0], list):
            return max(known, key=len)
        return known[0] if known else None

    return Features(*map(fullest, zip(*found, strict=True)))
