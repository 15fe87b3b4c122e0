"""Turns formulas from TeX into MathML, which browsers show without a script."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

# As pymdownx.arithmatex marks them.
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL
)


def on_page_content(text: str, **kwargs: Any) -> str:
    """Replaces the formulas of a page."""
    return _FORMULA.sub(
        lambda found: convert(
            html.unescape(found[2]),
            display="block" if found[1] == "div" else "inline",
        ),
        text,
    )
