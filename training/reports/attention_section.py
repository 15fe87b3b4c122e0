"""Collects what a page shows of the attention graphs of MHGD."""

from typing import Any

import numpy as np

from keras_mhgd.graph import GraphRecord, drawing

from . import pictures

_HEADS = 8
_SAMPLES, _MOST = 4, 6


def content(record: GraphRecord) -> dict[str, Any]:
    """Collects the teacher's graphs and how closely the student follows.

    Args:
        record: The graphs that a run recorded.

    Returns:
        Values for the template `attention.html.j2`.
    """
    bounds = [0, *record.bounds, len(record.classes)]
    edges = range(len(record.edges))
    return {
        "samples": len(record.classes),
        "heads": record.teacher.shape[1],
        "classes": [
            (str(record.classes[start]), end - start)
            for start, end in zip(bounds[:-1], bounds[1:], strict=True)
        ],
        "edges": [_edge(record, edge) for edge in edges],
        "charts": {
            title: _over_time(record, values)
            for title, values in (
                (
                    "Mean |student − teacher| of a head, in units of 1 / batch",
                    record.differences,
                ),
                (
                    "Divergence of a row, student from teacher",
                    record.divergences,
                ),
            )
        },
        "most": _MOST,
        "attended": _attended(record) if record.images.size else [],
    }


def _edge(record: GraphRecord, edge: int) -> dict[str, Any]:
    low, high = drawing.limits(record.relative("teacher", edge))
    return {
        "name": str(record.edges[edge]),
        "panels": drawing.panels(record, edge),
        "low": low,
        "high": high,
        "half": (high - low) / 2,
        "strips": _heads(record, edge),
    }


def _over_time(record: GraphRecord, values: np.ndarray) -> Any:
    epochs = [int(epoch) for epoch in record.epochs]
    return pictures.curves(
        {
            str(edge): list(zip(epochs, values[:, place], strict=True))
            for place, edge in enumerate(record.edges)
        }
    )


def _attended(record: GraphRecord) -> list[dict[str, Any]]:
    """Finds the images that some images attend to most, in both networks."""
    edge = len(record.edges) - 1
    rows = []
    for row in record.samples(_SAMPLES):
        columns = {
            part: record.attended(part, edge, row, _MOST)
            for part in ("teacher", "student")
        }
        both = set(columns["teacher"]) & set(columns["student"])
        parts = {
            part: [
                (record.images[each], str(record.classes[each]), each in both)
                for each in found
            ]
            for part, found in columns.items()
        }
        rows.append(
            {
                "image": record.images[row],
                "class": str(record.classes[row]),
                "parts": parts,
            }
        )
    return rows


def _heads(record: GraphRecord, edge: int) -> list[np.ndarray]:
    """Draws teacher, student and difference of some heads side by side."""
    teacher, student = (
        part[edge, :_HEADS].astype(np.float32) * len(record.classes)
        for part in (record.teacher, record.student)
    )
    low, high = drawing.limits(teacher)
    half = (high - low) / 2
    return list(
        np.concatenate(
            [
                drawing.coloured(teacher, low, high),
                drawing.coloured(student, low, high),
                drawing.coloured(student - teacher, -half, half, signed=True),
            ],
            axis=2,
        )
    )
