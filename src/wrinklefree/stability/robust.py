"""What numbers usually are, whatever a few of them are."""

from __future__ import annotations

from collections.abc import Collection
from statistics import median

_MAD_TO_DEVIATION = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""


def center_and_deviation(values: Collection[float]) -> tuple[float, float]:
    """Median of ``values`` (at least one), and by their median absolute deviation the standard one.

    Less than half of the values can change neither by much.
    """
    center = median(values)
    return center, _MAD_TO_DEVIATION * median(abs(value - center) for value in values)
