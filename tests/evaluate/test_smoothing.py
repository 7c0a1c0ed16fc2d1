from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.evaluate.smoothing import downsample, moving_average

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60)


@settings(max_examples=50, deadline=None)
@given(VALUES, st.integers(0, 70))
def test_moving_average_is_the_mean_of_the_neighbours_that_exist(values: list[float], reach: int):
    expected = []
    for index in range(len(values)):
        near = [value for at, value in enumerate(values) if abs(at - index) <= reach]
        expected.append(sum(near) / len(near))
    assert moving_average(values, reach) == pytest.approx(expected, abs=1e-9)


def test_moving_average_does_not_lag_behind_a_straight_line():
    line = [3.0 * index for index in range(50)]
    assert moving_average(line, 7)[7:-7] == pytest.approx(line[7:-7])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300), st.integers(2, 40))
def test_downsampling_keeps_extremes_ends_and_order(values: list[float], most: int):
    positions = [float(index) for index in range(len(values))]
    kept, thinned = downsample(positions, values, most)
    assert len(kept) <= max(most + 2, 2)
    assert kept == sorted(set(kept))
    assert thinned == [values[int(position)] for position in kept]
    assert (kept[0], kept[-1]) == (0.0, len(values) - 1.0)
    assert (min(thinned), max(thinned)) == (min(values), max(values))
