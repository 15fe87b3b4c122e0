"""The outputs of a network: one, or several by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras


class Heads:
    """Tells which of a structure belongs to which output.

    Args:
        outputs: The network's outputs or their shapes: one, or a list or dict.
        names: Names of the outputs in a list; their numbers if there are none.

    Raises:
        ValueError: If a list or dict has others inside.
    """

    def __init__(self, outputs: Any, names: Sequence[str] | None = None):
        self.names: tuple[str | None, ...] = (None,)
        if isinstance(outputs, Mapping):
            self.names = tuple(outputs)
            inside = list(outputs.values())
        elif _is_list(outputs):
            numbers = [str(number) for number in range(len(outputs))]
            known = names is not None and len(set(names)) == len(outputs)
            self.names = tuple(names if known else numbers)
            inside = list(outputs)
        else:
            return
        if any(isinstance(each, Mapping) or _is_list(each) for each in inside):
            raise ValueError(
                "A network must have one output, or a list or dict of "
                f"outputs. Received: {outputs}, which has others inside. "
                "Flatten them."
            )

    @property
    def several(self) -> bool:
        """Whether there is more than the one output without a name."""
        return self.names != (None,)

    def split(self, value: Any) -> dict[str | None, Any]:
        """Gives what belongs to each output, by its name.

        Args:
            value: For one output anything. For several a list or dict like
                them, of which a dict may leave some out; or something that is
                no list or dict and belongs to all of them, such as `None`.

        Raises:
            ValueError: If a list has another length, or a dict other names.
        """
        if not self.several:
            return {None: value}
        if isinstance(value, Mapping):
            others = [name for name in value if name not in self.names]
            if not others:
                return {name: value.get(name) for name in self.names}
        elif not isinstance(value, (list, tuple)):
            return dict.fromkeys(self.names, value)
        elif len(value) == len(self.names):
            return dict(zip(self.names, value, strict=True))
        received = list(value) if isinstance(value, Mapping) else len(value)
        raise ValueError(
            "What is given for several outputs must be a list or dict like "
            f"them, {list(self.names)}. Received: {received}. Name the "
            "outputs, or give one for each."
        )

    def like(self, parts: Mapping[str | None, Any], value: Any) -> Any:
        """Puts parts together again, in the structure of `value`."""
        if not self.several:
            return parts[None]
        if isinstance(value, Mapping):
            return {name: parts[name] for name in value}
        if isinstance(value, (list, tuple)):
            return type(value)(parts[name] for name in self.names)
        return value


def _is_list(outputs: Any) -> bool:
    if not isinstance(outputs, (list, tuple)):
        return False
    # A shape is a tuple as well.
    return not all(size is None or isinstance(size, int) for size in outputs)


def output_names(network: keras.Model) -> list[str] | None:
    """The names of the outputs of a network that knows them."""
    return getattr(network, "output_names", None)
