"""Several methods at once."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from keras_mhgd import gradients
from keras_mhgd.features import FeatureExtractor, Features
from keras_mhgd.methods.method import Method


class Place(NamedTuple):
    """What one of several methods reads of networks that have several.

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

    def student(self, found: Features) -> Features:
        """Picks from what the student gives."""
        return found.at(self.head, self.points)

    def teachers(self, found: Features | Sequence[Features]) -> Features:
        """Picks from what the teacher or teachers give."""
        if not isinstance(found, Features):
            found = found[self.teacher or 0]
        return found.at(self.head, None)

    def labels(self, found: Any) -> Any:
        """Picks from the labels."""
        if isinstance(found, dict):
            return found[self.head] if self.head is not None else None
        return found


@keras.saving.register_keras_serializable(package="keras_mhgd")
class Combined(Method):
    """Trains the student by several methods together.

    The terms of all are added. If one of them limits its gradient, as MHGD
    does by clipping, it is limited against the gradient of the task and of
    all the other methods: it can't drown them.

    Terms with the same name are numbered, as `soft_logits` and
    `soft_logits_2`.

    Args:
        methods: Two or more; of one that is combined itself its methods.
        places: What each of them reads, where networks have several outputs
            or teachers; a `Distiller` says that.
        weight: Multiplier of all terms, >= 0.

    Call arguments:
        student: `Features` of the student.
        teacher: `Features` of the teacher, or a list of several teachers'.
        labels: The batch's labels, by name for networks of several outputs.

    Returns:
        The terms of all methods.

    Raises:
        ValueError: If there are fewer than two, or if two limit their
            gradient.

    Example:
        >>> distiller = keras_mhgd.Distiller(
        ...     student,
        ...     teacher,
        ...     method=[keras_mhgd.methods.MHGD(num_heads=4), "soft_logits"],
        ... )
    """

    def __init__(
        self,
        methods: Sequence[Method],
        places: Sequence[Place] | None = None,
        weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(weight=weight, **kwargs)
        self.methods = [each for one in methods for each in one.parts()]
        if len(self.methods) < 2 and places is None:
            raise ValueError(
                "`methods` must be two or more methods. Received: "
                f"{[type(method).__name__ for method in self.methods]}."
            )
        self._places = tuple(places or (Place(),) * len(self.methods))
        self._names = _unique_names(self.methods, self._places)
        self.terms = tuple(
            name for names in self._names for name in names.values()
        )
        limiting = [
            method
            for method in self.methods
            if not isinstance(method.gradient_rule, gradients.Sum)
        ]
        if len({id(method.gradient_rule) for method in limiting}) > 1:
            raise ValueError(
                "`methods` must have at most one that limits its gradient. "
                f"Received: {[type(method).__name__ for method in limiting]}. "
                "Pass clipping=None to the others."
            )
        if limiting:
            self.gradient_rule = limiting[0].gradient_rule
        self._limiting = limiting
        self.needs = tuple(
            {need: None for method in self.methods for need in method.needs}
        )
        self.teacher_learns = any(
            method.teacher_learns for method in self.methods
        )
        self.senses_logits = any(
            method.senses_logits for method in self.methods
        )
        self.min_points = max(method.min_points for method in self.methods)

    def parts(self):
        return self.methods

    def heads(self) -> list[str | None]:
        """The output that each of `parts` reads; `None` for the only one."""
        return [place.head for place in self._places]

    @property
    def limited_terms(self):
        return tuple(
            names[term]
            for method, names in zip(self.methods, self._names, strict=True)
            if method in self._limiting or not self._limiting
            for term in method.limited_terms
        )

    @property
    def limited_variables(self):
        return [
            variable
            for method in self._limiting
            for variable in method.limited_variables
        ]

    @property
    def prepared(self):
        return all(method.prepared for method in self.methods)

    def prepare(self, teacher, student, **fit_arguments):
        for method, place in zip(self.methods, self._places, strict=True):
            if not method.prepared:
                method.prepare(
                    *_extractors(place, teacher, student), **fit_arguments
                )

    def artifacts(self):
        taken, found = collections.Counter(), {}
        for method, place in zip(self.methods, self._places, strict=True):
            for name, network in method.artifacts().items():
                found[_numbered(name + place.suffix, taken)] = network
        return found

    def build(self, student, teacher):
        for method, place in zip(self.methods, self._places, strict=True):
            # All before one of them is built.
            method._require_points(place.student(student))
        super().build(student, teacher)
        for method, place in zip(self.methods, self._places, strict=True):
            method.build(place.student(student), place.teachers(teacher))

    def _require_points(self, student):
        """Nothing: each method has asked for its own."""

    def targets(self, teacher):
        if isinstance(teacher, Features):
            return self._targets(teacher, self.methods)
        return [
            self._targets(
                found,
                [
                    method
                    for method, place in zip(
                        self.methods, self._places, strict=True
                    )
                    if place.teacher in (None, number)
                ],
            )
            for number, found in enumerate(teacher)
        ]

    def _targets(self, teacher, methods):
        found = [method.targets(teacher) for method in methods]
        # What one of them leaves out another may need.
        return Features(*map(_fullest, zip(*found, strict=True)))

    def call(self, student, teacher, labels):
        return self._terms("__call__", student, teacher, labels)

    def shares(self, student, teacher, labels):
        return self._terms("shares", student, teacher, labels)

    def _terms(self, compute, student, teacher, labels):
        terms = {}
        for method, place, names in zip(
            self.methods, self._places, self._names, strict=True
        ):
            if not names:
                continue  # it initialised the student
            found = getattr(method, compute)(
                place.student(student),
                place.teachers(teacher),
                place.labels(labels),
            )
            share = self.weight * place.share
            terms |= {names[term]: share * found[term] for term in names}
        return terms

    def update(self, student, teacher, labels):
        for method, place in zip(self.methods, self._places, strict=True):
            method.update(
                place.student(student),
                place.teachers(teacher),
                place.labels(labels),
            )

    def get_config(self):
        methods = map(keras.saving.serialize_keras_object, self.methods)
        return {**super().get_config(), "methods": list(methods)}

    @classmethod
    def from_config(cls, config):
        methods = map(keras.saving.deserialize_keras_object, config["methods"])
        return cls(**{**config, "methods": list(methods)})


def _unique_names(
    methods: Sequence[Method], places: Sequence[Place]
) -> tuple[dict[str, str], ...]:
    """Names the terms: of each method its own names and those they get."""
    taken, found = collections.Counter(), []
    for method, place in zip(methods, places, strict=True):
        found.append(
            {
                term: _numbered(term + place.suffix, taken)
                for term in method.terms
            }
        )
    return tuple(found)


def _numbered(name: str, taken: collections.Counter) -> str:
    """Gives a name its number if it is taken, and takes it."""
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}_{taken[name]}"


def _extractors(place, teacher, student):
    """What a method prepares with: the teacher's extractor, the student's."""
    if isinstance(teacher, FeatureExtractor):
        return teacher, student
    return teacher[place.teacher or 0], student.at_points(place.points)


def _fullest(values):
    """Of a field's values the one that leaves out least."""
    known = [value for value in values if value is not None]
    if known and isinstance(known[0], list):
        return max(known, key=len)
    return known[0] if known else None
