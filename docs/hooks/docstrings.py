"""Reads this library's docstrings and public names, for mkdocstrings."""

import re
from typing import Any

import griffe

# Sections of Keras's docstrings that Google's style lacks.
_NAMES = {
    "Call arguments:": "Other parameters: Call arguments",
    "Example:": "Examples: Example",
}
_SECTION = re.compile("^(?:" + "|".join(_NAMES) + ")$", re.MULTILINE)


class Reader(griffe.Extension):
    """Corrects what Griffe has read."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Gives sections a name that Griffe knows, and their own title."""
        if obj.docstring:
            obj.docstring.value = _SECTION.sub(
                lambda found: _NAMES[found[0]], obj.docstring.value
            )

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Offers a function, and not the module of its name that has it."""
        for module in pkg.modules.values():
            for name in module.exports or ():
                inner = module.members.get(name)
                if inner and inner.is_module and name in inner.members:
                    function = inner.members[name]
                    module.set_member(
                        name, griffe.Alias(name, function, parent=module)
                    )
