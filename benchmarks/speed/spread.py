"""Computes medians over rounds, with the smallest and largest value."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence

WALL, CPU = 0, 1

Rounds = Sequence[Mapping[str, Sequence[float]]]
"""For each round and route, the seconds of a step: wall-clock and CPU."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Holds the median of some numbers, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Takes the median, the smallest and the largest."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self):
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def seconds(rounds: Rounds, route: str, clock: int = WALL) -> float:
    """Gives the median time of a route's step over the rounds."""
    return statistics.median(each[route][clock] for each in rounds)


def ratio(
    rounds: Rounds, over: str, under: Sequence[str], clock: int = WALL
) -> Spread:
    """Divides the times of routes within each round.

    Args:
        rounds: Rounds of one contest.
        over: Route whose time is divided.
        under: Routes by whose summed time it is divided.
        clock: `WALL` or `CPU`.

    Returns:
        The spread of the ratios.
    """
    return Spread.of(
        each[over][clock] / sum(each[name][clock] for name in under)
        for each in rounds
    )
