"""Renders pages, each a single file with its pictures and no scripts."""

import base64
import io
from typing import Any

import jinja2
import numpy as np
import tensorflow as tf


def render(template: str, **content: Any) -> str:
    """Renders a page.

    Args:
        template: File in `templates`.
        **content: Values for the template; text is escaped.

    Returns:
        HTML that loads no other file.
    """
    return _TEMPLATES.get_template(template).render(**content)


def _png(pixels: np.ndarray) -> str:
    """Encodes uint8 pixels `(height, width, 1 or 3)` as a data URL."""
    return _address("png", tf.io.encode_png(pixels).numpy())


def _svg(figure: Any) -> str:
    """Encodes a `matplotlib.figure.Figure` as a data URL."""
    content = io.BytesIO()
    figure.savefig(content, format="svg")
    return _address("svg+xml", content.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {"png": _png, "svg": _svg}
