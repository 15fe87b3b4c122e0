"""Charts of a page: inline SVG and HTML that follow its colours and width."""

import base64
import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

_WIDTH, _HEIGHT = 380, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 10, 28
_COLOURS = 6  # `var(--c1)` to `var(--c6)` in the page's style

Series = Mapping[str, Sequence[tuple[float, float]]]


def lines(
    title: str,
    series: Series,
    log: bool = False,
    unit: str = "",
    limits: tuple[float, float] | None = None,
) -> str:
    """Draws values over epochs, with the last of each in the legend.

    Args:
        title: Above the chart.
        series: (epoch, value) pairs by name; colours repeat after six.
        log: Whether the scale is logarithmic; values that are not positive
            are left out.
        unit: Behind the values of the legend.
        limits: Values that the scale must hold; those that occur if `None`.

    Returns:
        A `<figure>`.
    """
    if log:
        series = {
            name: [(x, y) for x, y in points if y > 0]
            for name, points in series.items()
        }
    series = {name: points for name, points in series.items() if points}
    points = [point for each in series.values() for point in each]
    if not points:
        return ""
    first, last = (f(x for x, _ in points) for f in (min, max))
    values = [y for _, y in points] + list(limits or ())
    ticks = _ticks(min(values), max(values), log)

    def place(x, y):
        low, high = ticks[0], ticks[-1]
        if log:
            low, high, y = map(math.log, (low, high, y))
        right = _WIDTH - _LEFT - _RIGHT
        down = _HEIGHT - _TOP - _BOTTOM
        return (
            round(_LEFT + right * (x - first) / max(last - first, 1e-12), 1),
            round(_TOP + down * (high - y) / (high - low), 1),
        )

    parts = []
    for tick in ticks:
        _, y = place(first, tick)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4}" class="end">{tick:g}</text>'
        )
    for x, side in ((first, ""), (last, "end")):
        parts.append(
            f'<text x="{place(x, ticks[0])[0]}" y="{_HEIGHT - 8}" '
            f'class="{side}">{"epoch " if x == first else ""}{x:g}</text>'
        )
    keys = []
    for index, (name, each) in enumerate(series.items()):
        path = "L".join(" ".join(map(str, place(*point))) for point in each)
        x, y = place(*each[-1])
        colour = f'style="--c: var(--c{index % _COLOURS + 1})"'
        parts.append(
            f'<g {colour}><path class="line" d="M{path}"/>'
            f'<circle cx="{x}" cy="{y}" r="3"/></g>'
        )
        keys.append(
            f'<span class="key" {colour}>{html.escape(name)} '
            f"<b>{each[-1][1]:.4g}{unit}</b></span>"
        )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}">{"".join(parts)}</svg>'
        f'<p class="keys">{"".join(keys)}</p></figure>'
    )


def grid(made: Iterable[str]) -> str:
    """Puts charts side by side, as many as fit."""
    return f'<div class="charts">{"".join(made)}</div>'


def strips(
    rows: Mapping[str, Sequence[float]], marks: Mapping[str, float]
) -> str:
    """Draws the values of several ways on one scale, a strip for each.

    Args:
        rows: Values by name: dots, and their mean as a bar.
        marks: Values that all strips are marked at, by name.

    Returns:
        HTML.
    """
    values = [value for each in rows.values() for value in each]
    values += marks.values()
    low, high = min(values), max(values)
    margin = 0.04 * (high - low) or 1.0

    def left(value):
        share = (value - low + margin) / (high - low + 2 * margin)
        return f'style="left:{100 * share:.2f}%"'

    lines = "".join(f"<u {left(value)}></u>" for value in marks.values())
    made = []
    for name, each in rows.items():
        mean = statistics.mean(each)
        dots = "".join(f"<i {left(value)}></i>" for value in each)
        made.append(
            f'<div class="strip"><span>{html.escape(name)}</span>'
            f"<div>{lines}{dots}<s {left(mean)}></s></div>"
            f"<b>{mean:.2f}</b></div>"
        )
    legend = ", ".join(
        f"{html.escape(name)} {value:.2f}" for name, value in marks.items()
    )
    return f'{"".join(made)}<p class="note">Lines: {legend}.</p>'


def picture(pixels: np.ndarray, text: str, kind: str = "") -> str:
    """Embeds an image.

    Args:
        pixels: uint8 `(height, width, 1 or 3)`.
        text: What it shows.
        kind: Its class in the page's style.

    Returns:
        An `<img>`.
    """
    code = base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
    height, width = pixels.shape[:2]
    return (
        f'<img class="{kind}" width="{width}" height="{height}" '
        f'alt="{html.escape(text)}" src="data:image/png;base64,{code}">'
    )


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Gives round values, the first not above `low`, the last not below."""
    if log:
        steps = [
            digit * 10.0**power
            for power in range(
                math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1
            )
            for digit in (1, 2, 5)
        ]
        start = max(i for i, step in enumerate(steps) if step <= low)
        ends = [i for i, step in enumerate(steps) if step >= high]
        end = max(ends[0], start + 1) if ends else len(steps) - 1
        chosen = steps[start : end + 1]
        every = max(1, (len(chosen) - 1) // 4)
        return [*chosen[:-1:every], chosen[-1]]
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = low - abs(low) / 10 - 1e-3, high + abs(high) / 10 + 1e-3
    power = 10.0 ** math.floor(math.log10((high - low) / 3))
    step = next(
        digit * power
        for digit in (1, 2, 2.5, 5, 10)
        if (high - low) / (digit * power) <= 5
    )
    start, end = math.floor(low / step), math.ceil(high / step)
    return [round(step * index, 12) for index in range(start, end + 1)]
