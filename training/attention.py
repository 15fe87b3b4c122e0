"""A page's part on the attention graphs of MHGD."""

import html

import numpy as np

from keras_mhgd.graph import GraphRecord, drawing
from training import charts

_HEADS = 8
_SAMPLES, _ATTENDED = 4, 6


def section(record: GraphRecord) -> str:
    """Shows what the teacher's graphs are and how far the student took them.

    Args:
        record: What a run kept.

    Returns:
        HTML.
    """
    times = [int(epoch) for epoch in record.epochs]
    over_time = [
        charts.lines(
            title,
            {
                edge: list(zip(times, values[:, place], strict=True))
                for place, edge in enumerate(record.edges)
            },
        )
        for title, values in (
            (
                "Mean |student − teacher| of a head, in units of 1 / batch",
                record.differences,
            ),
            ("Divergence of a row, student from teacher", record.divergences),
        )
    ]
    return (
        f"<p>A fixed batch of {len(record.classes)} test images, sorted by "
        "class. A row says to whose front-end features an image's back-end "
        "features attend; colours are of the mean over "
        f"{record.teacher.shape[1]} heads, where 1 is indifference.</p>"
        + "".join(map(_edge(record), range(len(record.edges))))
        + charts.grid(over_time)
        + (_attended(record) if record.images.size else "")
        + "".join(map(_heads(record), range(len(record.edges))))
    )


def _edge(record: GraphRecord):
    bounds = [0, *record.bounds, len(record.classes)]
    labels = "".join(
        f'<span style="flex: {end - start} 0 0">'
        f"{html.escape(str(record.classes[start]))}</span>"
        for start, end in zip(bounds[:-1], bounds[1:], strict=True)
    )

    def made(edge):
        low, high = drawing.limits(record.relative("teacher", edge))
        half = (high - low) / 2
        pictures = drawing.panels(record, edge)
        panels = "".join(
            f"<div>{name}{charts.picture(pixels, name)}"
            f'<div class="classes">{labels}</div></div>'
            for name, pixels in pictures.items()
        )
        return (
            f"<h3>{html.escape(str(record.edges[edge]))}</h3>"
            f'<div class="panels">{panels}</div>'
            '<p class="note keys">'
            f'<span>{low:.2f}<i class="scale magma"></i>{high:.2f}</span>'
            f'<span>difference −{half:.2f}<i class="scale signed"></i>'
            f"+{half:.2f}</span></p>"
        )

    return made


def _attended(record: GraphRecord) -> str:
    edge = len(record.edges) - 1
    lines = []
    for row in record.samples(_SAMPLES):
        name = str(record.classes[row])
        sets = {
            part: record.attended(part, edge, row, _ATTENDED)
            for part in ("teacher", "student")
        }
        both = set(sets["teacher"]) & set(sets["student"])
        strips = ""
        for part, columns in sets.items():
            images = "".join(
                charts.picture(
                    record.images[column],
                    str(record.classes[column]),
                    "thumb both" if column in both else "thumb",
                )
                for column in columns
            )
            strips += f'<div class="attended"><em>{part}</em>{images}</div>'
        lines.append(
            f'<div class="row"><div>'
            f"{charts.picture(record.images[row], name, 'thumb large')}"
            f"{html.escape(name)}</div>{strips}</div>"
        )
    return (
        "<h3>Whom images attend to most, "
        f"{html.escape(str(record.edges[edge]))}</h3>"
        '<p class="note">Strongest first. Framed: among the first '
        f"{_ATTENDED} of both networks.</p>"
        f'<div class="two">{"".join(lines)}</div>'
    )


def _heads(record: GraphRecord):
    count = record.teacher.shape[1]
    shown = min(count, _HEADS)

    def made(edge):
        teacher, student = (
            part[edge, :shown].astype(np.float32) * len(record.classes)
            for part in (record.teacher, record.student)
        )
        low, high = drawing.limits(teacher)
        half = (high - low) / 2
        strips = np.concatenate(
            [
                drawing.coloured(teacher, low, high),
                drawing.coloured(student, low, high),
                drawing.coloured(student - teacher, -half, half, signed=True),
            ],
            axis=2,
        )
        strips = "".join(
            f'<div class="faint">head {head + 1}'
            f"{charts.picture(strip, f'head {head + 1}')}</div>"
            for head, strip in enumerate(strips)
        )
        return (
            f"<details><summary>{html.escape(str(record.edges[edge]))}, "
            f"{shown} of {count} heads: teacher, student, difference</summary>"
            f'<div class="heads">{strips}</div></details>'
        )

    return made
