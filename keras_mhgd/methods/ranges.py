"""The one form of the error for a number that is out of range."""


def require_positive(**values: float) -> None:
    """Raises `ValueError` unless each named value is above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(
                f"`{name}` must be positive. Received: {name}={value}."
            )


def require_not_negative(**values: float) -> None:
    """Raises `ValueError` unless each named value is 0 or more."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(
                f"`{name}` must be 0 or more. Received: {name}={value}."
            )
