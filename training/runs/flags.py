"""Writes flags of programs, and reads arguments of methods."""

import json
from collections.abc import Mapping
from typing import Any

Flags = Mapping[str, Any]
"""Flags of a program by name; a list is joined by commas, `set` is a dict."""


def command_line(flags: Flags) -> list[str]:
    """Writes flags as the arguments of a command."""
    made = []
    for name, value in flags.items():
        if name == "set":
            made += [f"--set={argument}" for argument in set_arguments(value)]
        elif isinstance(value, bool):
            made.append(f"--{'' if value else 'no'}{name}")
        elif isinstance(value, list):
            made.append(f"--{name}={','.join(map(str, value))}")
        else:
            made.append(f"--{name}={value}")
    return made


def set_arguments(values: Mapping[str, Any]) -> list[str]:
    """Writes methods' arguments as the values of `--set`."""
    return [f"{name}={_json(value)}" for name, value in values.items()]


def _json(value: Any) -> str:
    # `--set` parses null, true and numbers, and keeps other words unchanged.
    return value if isinstance(value, str) else json.dumps(value)


def parsed(value: str) -> Any:
    """Parses the value of a `--set`: JSON, or a word such as tanh."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
