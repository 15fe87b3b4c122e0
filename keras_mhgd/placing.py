"""What each method reads of networks with several outputs or teachers."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras_mhgd.methods import Identifier, get
from keras_mhgd.methods.combined import Combined, Place
from keras_mhgd.methods.method import Method
from keras_mhgd.outputs import Heads


def is_by_head(method: Any) -> bool:
    """Whether it is a dict of methods, and no configuration of one."""
    return isinstance(method, Mapping) and "class_name" not in method


def asked_for(
    method: Method | Mapping[str, Identifier], heads: Heads
) -> list[tuple[Method, str | None]]:
    """Lists methods one by one, each with the output that it is asked for.

    Args:
        method: One, or one for some of the outputs by their names.
        heads: The outputs.

    Returns:
        Methods, with `None` where none is named.
    """
    if is_by_head(method) and not heads.several:
        raise ValueError(
            "`method` must be one for all, or a list, for networks with one "
            f"output. Received: methods for outputs {list(method)}."
        )
    if not is_by_head(method):
        return [(part, None) for part in method.parts()]
    return [
        (part, head)
        for head, one in heads.split(method).items()
        if one is not None
        for part in get(one).parts()
    ]


def placed(
    asked: Sequence[tuple[Method, str | None]],
    heads: Heads,
    points: Sequence[str],
    pairs: Sequence[Sequence[tuple[str, str]]],
    shares: Sequence[float],
    weight: float = 1.0,
) -> Combined:
    """Puts methods where they read.

    One that reads outputs is there for each output, if none is named; one
    that reads more than scores for each teacher. All that limit their
    gradient do so together.

    Args:
        asked: What `asked_for` gives.
        heads: The outputs.
        points: The student's sensing points.
        pairs: Sensing points of student and teacher, for each teacher.
        shares: Weights of the teachers.
        weight: Multiplier of all terms.
    """
    made: list[Method] = []
    places = []
    for part, head in asked:
        names = [None]
        if part.reads_outputs:
            names = [head] if head else heads.names
        numbers = [None]
        if len(pairs) > 1 and not part.reads_only_scores:
            numbers = range(len(pairs))
        for name in names:
            for number in numbers:
                place = Place(name)
                if number is not None:
                    own = [points.index(ours) for ours, _ in pairs[number]]
                    place = Place(name, number, tuple(own), shares[number])
                made.append(_copy(part) if part in made else part)
                places.append(place)
    return Combined(made, places, weight=weight)


def _copy(part: Method) -> Method:
    """Another method with the same arguments, and the same gradient rule."""
    copy = type(part).from_config(part.get_config())
    copy.gradient_rule = part.gradient_rule
    return copy
