"""Keeps the names of flags whole: browsers end lines after their hyphens."""

import re
from typing import Any

_CODE = re.compile(r"<code>[^<]*</code>")
_FLAG = re.compile(r"--\w+")


def on_page_content(text: str, **kwargs: Any) -> str:
    """Marks the flags that are named in sentences and tables."""
    return _CODE.sub(
        lambda found: _FLAG.sub(r'<span class="flag">\g<0></span>', found[0]),
        text,
    )
