"""Checks arguments and raises errors in one common form."""

import difflib
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping


def unknown(what: str, received: object, valid: Iterable[str]) -> ValueError:
    """Makes the error for an unknown name, with a hint at similar names.

    Args:
        what: Name of the argument, as the user writes it.
        received: The value that was passed.
        valid: All valid names.

    Returns:
        The `ValueError` to raise.
    """
    valid = list(valid)
    return ValueError(
        f"`{what}` must be one of {', '.join(valid)}. "
        f"Received: {what}={received!r}.{hint(received, valid)}"
    )


def hint(received: object, valid: Iterable[str]) -> str:
    """Writes which valid names are similar; empty if none is.

    Args:
        received: The value that was passed.
        valid: All valid names.
    """
    near = difflib.get_close_matches(str(received), list(valid))
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def require_known(what: str, received: object, valid: Collection[str]) -> None:
    """Raises the error of `unknown` unless `received` is a valid name."""
    if received not in valid:
        raise unknown(what, received, valid)


def require_positive(**values: float) -> None:
    """Raises `ValueError` unless each named value is above 0."""
    _require(lambda value: value > 0, "positive", values)


def require_not_negative(**values: float) -> None:
    """Raises `ValueError` unless each named value is 0 or more."""
    _require(lambda value: value >= 0, "0 or more", values)


def require_one_or_more(**values: float) -> None:
    """Raises `ValueError` unless each named value is 1 or more."""
    _require(lambda value: value >= 1, "1 or more", values)


def check_integer(name: str, value: int) -> int:
    """Returns `value` if it is an integer, and raises otherwise.

    Args:
        name: Name of the argument, for the message.
        value: The value that was passed.

    Returns:
        `value`.

    Raises:
        TypeError: If `value` is not an integer. A bool does not count as one.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"`{name}` must be an integer. "
            f"Received: {name}={value!r} of type {type(value).__name__}. "
            "Pass a whole number."
        )
    return value


def _require(
    holds: Callable[[float], bool], what: str, values: Mapping[str, float]
) -> None:
    for name, value in values.items():
        if not holds(value):
            raise ValueError(
                f"`{name}` must be {what}. Received: {name}={value}."
            )
