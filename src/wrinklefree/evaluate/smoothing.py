"""Making curves of many noisy points readable. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

MOST_POINTS = 600


def moving_average(values: Sequence[float], reach: int) -> list[float]:
    """Mean of each value and its up to ``reach`` neighbours on either side.

    Centred, because an average that only looks back runs late on a falling curve. At the ends the
    mean is over the neighbours that exist.
    """
    sums = [0.0, *accumulate(values)]
    means = []
    for index in range(len(values)):
        start, end = max(0, index - reach), min(len(values), index + reach + 1)
        means.append((sums[end] - sums[start]) / (end - start))
    return means


def downsample(
    positions: Sequence[float], values: Sequence[float], most: int = MOST_POINTS
) -> tuple[list[float], list[float]]:
    """At most about ``most`` points that keep the extremes, so that no spike is lost.

    The points are cut into ``most / 2`` runs; each keeps its first-occurring minimum and maximum,
    in order.
    """
    if len(positions) <= most:
        return list(positions), list(values)
    runs = most // 2
    kept: list[int] = []
    for run in range(runs):
        indices = range(run * len(values) // runs, (run + 1) * len(values) // runs)
        extremes = {min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)}
        kept.extend(sorted(extremes))
    kept = sorted({0, *kept, len(values) - 1})
    return [positions[index] for index in kept], [values[index] for index in kept]
