"""Compares the library's speed with its bars, the required values."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.speed.spread import CPU, Rounds, Spread, ratio

_CACHED = {"glyphs": 1.35, "wrn": 1.15}
# Two timings of the same code differ by less than this fraction.
_NOISE = 0.05


@dataclasses.dataclass(frozen=True)
class Bar:
    """Holds a row of the table.

    Attributes:
        what: What was measured.
        bar: The required value, in words.
        reached: The measured value, in words.
        met: Whether the measured value suffices; `None` if no value is
            required.
    """

    what: str
    bar: str
    reached: str
    met: bool | None


def bars(results: Mapping[str, Any]) -> list[Bar]:
    """Compares measured values with required ones.

    Args:
        results: Results by task, as `tasks.tasks` names them; a missing task
            has no row.

    Returns:
        The rows.
    """
    made = []
    for key, result in results.items():
        section, *rest = key.split("/")
        if section in _BARS:
            made += _BARS[section](result, *rest)
    return made + list(_graph(results))


def _at_least(what: str, reached: Spread, bound: float) -> Bar:
    return Bar(
        what, f"at least {bound:g}", str(reached), reached.median >= bound
    )


def _at_most(what: str, reached: Spread, bound: float) -> Bar:
    return Bar(
        what, f"at most {bound:g}", str(reached), reached.median <= bound
    )


def _steps(result, pair, group) -> Iterator[Bar]:
    rounds: Rounds = result["rounds"]

    def row(test, what, over, *under, bound):
        if rounds[0].keys() >= {over, *under}:
            return [test(f"{pair}: {what}", ratio(rounds, over, under), bound)]
        return []

    yield from row(
        _at_most,
        "soft logits over (student + teacher forward)",
        "soft logits",
        "student",
        "teacher forward",
        bound=1.05,
    )
    yield from row(
        _at_least,
        "student, Keras's batch normalisation over fused",
        "student unfused",
        "student",
        bound=1.8,
    )
    if "student without normalisation" in rounds[0]:
        limit = ratio(
            rounds, "student unfused", ["student without normalisation"]
        )
        yield Bar(
            f"{pair}: student, Keras's batch normalisation over none at all",
            "no bar: the limit of the row above",
            str(limit),
            None,
        )
    for method in ("FitNet", "attention transfer"):
        yield from row(
            _at_least,
            f"keras.distillation with one feature loss over {method}",
            "keras.distillation feature",
            method,
            bound=1.4,
        )
    yield from row(
        _at_most,
        "MHGD per-feature cached over student",
        "MHGD per-feature cached",
        "student",
        bound=_CACHED[pair],
    )
    yield from row(
        _at_least, "naive MHGD over MHGD", "naive MHGD", "MHGD", bound=2
    )


def _parts(result, pair, clipping) -> Iterator[Bar]:
    if clipping == "per_variable":
        reached = ratio(result["rounds"], "step", ["teacher", "two backwards"])
        what = "MHGD over (teacher + student forward + two backwards)"
        yield _at_most(f"{pair}: {what}", reached, 1.25)


def _vectors(result, *_) -> Iterator[Bar]:
    def over(shape, solver):
        names = f"{shape}, {solver}", [f"{shape}, ours"]
        return ratio(result["rounds"], *names, clock=CPU)

    for shape in ("256 x 64", "64 x 128"):
        what = f"vectors at {shape}: tf.linalg.svd over ours, CPU time"
        yield _at_least(what, over(shape, "tf.linalg.svd"), 6)
    for shape in ("784 x 16", "16 x 256", "196 x 256", "49 x 64"):
        reached = over(shape, "eigendecomposition")
        yield Bar(
            f"vectors at {shape}: eigendecomposition over ours, CPU time",
            f"at least 1, but for {100 * _NOISE:.0f} % of noise",
            str(reached),
            reached.median >= 1 - _NOISE,
        )


def _accuracy(result, pair) -> Iterator[Bar]:
    for index, (what, bound) in enumerate(
        (
            ("sine of the angle to the exact vector", 1e-3),
            ("error of the gradient over its largest entry", 1e-2),
        )
    ):
        worst = max(each[index] for each in result.values())
        yield _below(f"{pair}: {what}, largest", worst, bound)


def _below(what, reached, bound, unit="") -> Bar:
    return Bar(
        what, f"below {bound:g}{unit}", f"{reached:.2g}{unit}", reached < bound
    )


def _graph(results) -> Iterator[Bar]:
    found = {
        size: results[f"graph/{size}"]["megabytes"]
        for size in (4096, 8192)
        if f"graph/{size}" in results
    }
    if 4096 in found:
        yield Bar(
            "graph loss at N = 4096, 8 heads: memory",
            "below 1000 MB",
            f"{found[4096]:.0f} MB",
            found[4096] < 1000,
        )
    if len(found) == 2:
        times = found[8192] / found[4096]
        yield _below("graph loss: memory at 8192 over 4096", times, 2.5)


def _fusion(result, pair) -> Iterator[Bar]:
    what = f"{pair}: fused and Keras's batch normalisation after 20 steps"
    yield _below(f"{what}: trained weights", result["weights"], 1e-4)
    yield _below(
        f"{what}: moving statistics, relative", result["statistics"], 1e-4
    )


def _input(result, pair) -> Iterator[Bar]:
    reached = ratio(result["rounds"], "student", ["input"])
    yield _at_least(f"{pair}: input pipeline over training rate", reached, 5)


def _compile(result, pair, method) -> Iterator[Bar]:
    plain, compiled = result["plain"], result["compiled"]
    error = abs(compiled["loss"] / plain["loss"] - 1)
    yield Bar(
        f"{pair}: {method} with XLA: first step; loss of the third",
        "within 60 s; the same but for 0.1 %",
        f"{compiled['seconds']:.0f} s; {100 * error:.2g} % off",
        compiled["seconds"] < 60 and error < 1e-3,
    )


def _imports(result) -> Iterator[Bar]:
    added = "import keras_mhgd after import keras, s"
    yield _at_most(added, Spread.of(result["seconds"]), 0.15)


_BARS: dict[str, Callable[..., Iterator[Bar]]] = {
    "steps": _steps,
    "parts": _parts,
    "vectors": _vectors,
    "accuracy": _accuracy,
    "fusion": _fusion,
    "input": _input,
    "compile": _compile,
    "imports": _imports,
}
