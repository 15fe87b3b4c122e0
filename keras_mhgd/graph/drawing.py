"""Draws pictures of attention graphs."""

import math
from collections.abc import Sequence

import numpy as np

from keras_mhgd.graph.record import GraphRecord

_INK, _FAINT = "#222222", "#777777"
_DPI = 100


def coloured(
    graph: np.ndarray, low: float, high: float, signed: bool = False
) -> np.ndarray:
    """Colours the entries of a graph.

    Args:
        graph: Entries, `(..., batch, batch)`.
        low: Value of the first colour.
        high: Value of the last colour.
        signed: Whether to use the colours of differences: blue, white, red.

    Returns:
        uint8 `(..., batch, batch, 3)`.
    """
    import matplotlib

    colours = matplotlib.colormaps["RdBu_r" if signed else "magma"]
    share = (graph - low) / max(high - low, 1e-12)
    table = colours(np.arange(256), bytes=True)[:, :3]
    return table[(255 * share.clip(0, 1)).astype(np.uint8)]


def limits(teacher: np.ndarray) -> tuple[float, float]:
    """Computes the values of the first and the last colour.

    They are percentiles (1 and 99) of the frozen teacher's entries, so the
    pictures of all epochs can be compared.
    """
    low, high = np.percentile(teacher, [1, 99])
    return float(low), float(high)


def panels(
    record: GraphRecord, edge: int, scale: int = 4
) -> dict[str, np.ndarray]:
    """Colours an edge's mean graphs over heads, with lines between classes.

    Args:
        record: The graphs.
        edge: Position of the edge.
        scale: Height and width of an entry, in pixels.

    Returns:
        Pictures by name, uint8 `(scale * batch, scale * batch, 3)`: of the
        teacher, of the student before and after training, and of the
        difference student minus teacher.
    """
    teacher, before, student = (
        record.relative(part, edge) for part in ("teacher", "before", "student")
    )
    low, high = limits(teacher)
    half = (high - low) / 2
    found = {
        "teacher": coloured(teacher, low, high),
        "student before": coloured(before, low, high),
        "student": coloured(student, low, high),
        "difference": coloured(student - teacher, -half, half, signed=True),
    }
    for name, picture in found.items():
        picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        line = 0 if name == "difference" else 255
        for bound in record.bounds:
            for part in (picture[bound * scale], picture[:, bound * scale]):
                part[:] = 0.7 * part + 0.3 * line
        found[name] = picture
    return found


def draw_edges(record: GraphRecord) -> np.ndarray:
    """Draws teacher, student and difference, each as the mean over heads.

    Args:
        record: The graphs.

    Returns:
        uint8 `(height, width, 3)`, a row for each edge.
    """
    shown = ("teacher", "student", "difference")
    scale = max(2, 256 // len(record.classes))
    side = scale * len(record.classes)
    board = _Board(60 + 3 * (side + 30), 50 + len(record.edges) * (side + 50))
    board.text(
        12,
        16,
        f"Attention after {record.epochs[-1]} epochs, mean of "
        f"{record.teacher.shape[1]} heads, little (dark) to much (light)",
    )
    bounds = [0, *record.bounds, len(record.classes)]
    for edge, name in enumerate(record.edges):
        top = 50 + edge * (side + 50)
        board.text(14, top + side / 2, name, align="center", rotation=90)
        pictures = panels(record, edge, scale)
        for place, kind in enumerate(shown):
            left = 60 + place * (side + 30)
            board.put(pictures[kind], left, top)
            text = kind
            if kind == "difference":
                text += f", {record.differences[-1, edge]:.2f} a head"
            board.text(left, top - 9, text, colour=_FAINT)
            for start, end in zip(bounds[:-1], bounds[1:], strict=True):
                middle = scale * (start + end) / 2
                for x, y in (
                    (left + middle, top + side + 9),
                    (left - 10, top + middle),
                ):
                    board.text(x, y, record.classes[start], "center", size=7)
    return board.drawn()


def draw_heads(record: GraphRecord, edge: int) -> np.ndarray:
    """Draws each head of an edge: teacher, student and difference in a strip.

    Args:
        record: The graphs.
        edge: Position of the edge.

    Returns:
        uint8 `(height, width, 3)`.
    """
    count = len(record.classes)
    teacher, student = (
        part[edge].astype(np.float32) * count
        for part in (record.teacher, record.student)
    )
    low, high = limits(teacher)
    half = (high - low) / 2
    scale = max(1, (128 if len(teacher) <= 8 else 64) // count)
    strips = [
        each.repeat(scale, axis=1).repeat(scale, axis=2)
        for each in (
            coloured(teacher, low, high),
            coloured(student, low, high),
            coloured(student - teacher, -half, half, signed=True),
        )
    ]
    columns = math.ceil((len(teacher) / 3) ** 0.5)
    side = scale * count
    wide, tall = 3 * (side + 6) + 18, side + 26
    board = _Board(
        12 + columns * wide, 34 + math.ceil(len(teacher) / columns) * tall
    )
    board.text(
        12,
        14,
        f"{record.edges[edge]} after {record.epochs[-1]} epochs: teacher, "
        "student, difference",
    )
    for head in range(len(teacher)):
        row, column = divmod(head, columns)
        left, top = 12 + column * wide, 46 + row * tall
        board.text(left, top - 8, f"head {head + 1}", size=7, colour=_FAINT)
        for place, strip in enumerate(strips):
            board.put(strip[head], left + place * (side + 6), top)
    return board.drawn()


def draw_attended(
    record: GraphRecord, edge: int, samples: Sequence[int], count: int = 6
) -> np.ndarray:
    """Draws samples and the images that they attend to most.

    Args:
        record: The graphs, with images.
        edge: Position of the edge.
        samples: Positions of the samples.
        count: Number of attended images for each sample and network.

    Returns:
        uint8 `(height, width, 3)`, with a row for each sample. A row shows the
        sample, the images that the teacher attends to and the images that the
        student attends to. Each image has its class below, and an attended
        image also its attention, where 1 is indifference.
    """
    images = record.images
    if images.shape[-1] == 1:
        images = images.repeat(3, axis=-1)
    scale = max(1, 64 // images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    tall, wide = images.shape[1] + 26, images.shape[2] + 8
    starts = 12, 12 + wide + 20, 12 + (1 + count) * wide + 40
    board = _Board(starts[2] + count * wide + 12, 54 + tall * len(samples))
    title = f"{record.edges[edge]} after {record.epochs[-1]} epochs"
    board.text(12, 14, f"What samples attend to most, {title}")
    for left, text in zip(starts, ("", "teacher", "student"), strict=True):
        board.text(left, 36, text, colour=_FAINT)
    for line, row in enumerate(samples):
        top = 48 + line * tall
        cells = [(starts[0], row, "")]
        for left, part in zip(starts[1:], ("teacher", "student"), strict=True):
            weights = record.relative(part, edge)[row]
            cells += [
                (left + place * wide, column, f"  {weights[column]:.1f}")
                for place, column in enumerate(
                    record.attended(part, edge, row, count)
                )
            ]
        for left, column, weight in cells:
            board.put(images[column], left, top)
            text = f"{record.classes[column]}{weight}"
            board.text(left, top + tall - 18, text, size=7)
    return board.drawn()


class _Board:
    """Places pictures and text on a white canvas, at positions in pixels.

    Matplotlib draws only the text. It would be slow for pictures, and
    TensorBoard gets several canvases at each recorded time.
    """

    def __init__(self, width: int, height: int):
        self._canvas = np.full((height, width, 3), 255, np.uint8)
        self._texts = []

    def put(self, picture: np.ndarray, left: int, top: int) -> None:
        height, width = picture.shape[:2]
        self._canvas[top : top + height, left : left + width] = picture

    def text(
        self, x, y, text, align="left", size=9, colour=_INK, rotation=0
    ) -> None:
        self._texts.append((x, y, text, align, size, colour, rotation))

    def drawn(self) -> np.ndarray:
        # Imported only here, since that takes a second. Agg needs no display.
        import matplotlib.figure
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        height, width = self._canvas.shape[:2]
        figure = matplotlib.figure.Figure(
            figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="none"
        )
        for x, y, text, align, size, colour, rotation in self._texts:
            figure.text(
                x / width,
                1 - y / height,
                text,
                ha=align,
                va="center",
                fontsize=size,
                color=colour,
                rotation=rotation,
                parse_math=False,
            )
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        # Text is blended in here, only at its own pixels. Matplotlib would
        # hold several copies of the whole image in floats.
        letters = np.asarray(canvas.buffer_rgba())
        rows, columns = np.nonzero(letters[..., 3])
        *ink, alpha = letters[rows, columns].T / 255
        under = self._canvas[rows, columns]
        mixed = 255 * np.stack(ink, 1) * alpha[:, None]
        mixed += under * (1 - alpha[:, None])
        self._canvas[rows, columns] = mixed.round()
        return self._canvas
