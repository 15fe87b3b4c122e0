"""The one form of the error for a name that is none of the valid ones."""

import difflib
from collections.abc import Collection, Iterable


def unknown(what: str, received: object, valid: Iterable[str]) -> ValueError:
    """Makes the error for an unknown name; near names come first.

    Args:
        what: The argument, as the user knows it.
        received: What was given.
        valid: All valid names.

    Returns:
        The `ValueError` to raise.
    """
    valid = list(valid)
    near = difflib.get_close_matches(str(received), valid)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(
        f"`{what}` must be one of {', '.join(valid)}. "
        f"Received: {what}={received!r}.{hint}"
    )


def require_known(what: str, received: object, valid: Collection[str]) -> None:
    """Raises the error of `unknown` unless a name is one of the valid ones."""
    if received not in valid:
        raise unknown(what, received, valid)
