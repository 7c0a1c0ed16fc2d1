from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.errors import UserError
from wrinklefree.research.draw import draw_mixtures, mixture_of_run, rounded_weights
from wrinklefree.research.settings import DrawSettings

PRESENT = {"a": 0.5, "b": 0.3, "c": 0.2, "none": 0.0}


def draw_settings(**changes: Any) -> DrawSettings:
    values = {"concentration_min": 3.0, "concentration_max": 3.0, "floor": 0.0}
    return DrawSettings(**(values | changes))


def test_a_runs_mixture_follows_from_seed_and_number_and_from_both():
    one = mixture_of_run(PRESENT, draw_settings(), seed=1, run=0)
    assert one == mixture_of_run(PRESENT, draw_settings(), seed=1, run=0)
    assert one != mixture_of_run(PRESENT, draw_settings(), seed=1, run=1)
    assert one != mixture_of_run(PRESENT, draw_settings(), seed=2, run=0)
    assert list(one) == list(PRESENT)


@settings(max_examples=40, deadline=None)
@given(
    present=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6),
    floor=st.floats(0.0, 0.15),
    concentration=st.floats(0.1, 100.0),
    seed=st.integers(0, 2**40),
)
def test_every_mixture_sums_to_1_and_keeps_the_floor(
    present: list[float], floor: float, concentration: float, seed: int
):
    weights = {str(index): value / sum(present) for index, value in enumerate(present)}
    chosen = draw_settings(
        concentration_min=concentration, concentration_max=concentration * 2, floor=floor
    )
    drawn_ND = draw_mixtures(weights, chosen, seed, 5)
    assert np.allclose(drawn_ND.sum(axis=1), 1.0, atol=1e-12)
    assert (drawn_ND >= floor - 1e-12).all()


def test_concentrations_are_drawn_by_their_logarithm():
    chosen = draw_settings(concentration_min=0.1, concentration_max=100.0)
    drawn_ND = draw_mixtures({"a": 0.5, "b": 0.5}, chosen, seed=3, count=4000)
    # A third of the concentrations are below 1, with which one domain has nearly all.
    one_sided = float((drawn_ND.max(axis=1) > 0.95).mean())
    generator = np.random.default_rng(0)
    concentrations = np.exp(generator.uniform(math.log(0.1), math.log(100.0), 4000))
    shares = generator.beta(concentrations / 2, concentrations / 2)
    expected = float((np.maximum(shares, 1 - shares) > 0.95).mean())
    assert one_sided == pytest.approx(expected, abs=0.03) and expected > 0.2


def test_means_and_variances_are_those_of_the_dirichlet():
    floor, concentration = 0.05, 7.0
    chosen = draw_settings(
        concentration_min=concentration, concentration_max=concentration, floor=floor
    )
    drawn_ND = draw_mixtures(PRESENT, chosen, seed=3, count=40_000)
    left = 1 - 3 * floor
    for index, p in enumerate((0.5, 0.3, 0.2)):
        variance = left**2 * p * (1 - p) / (concentration + 1)
        error = math.sqrt(variance / 40_000)
        assert drawn_ND[:, index].mean() == pytest.approx(floor + left * p, abs=5 * error)
        assert drawn_ND[:, index].var() == pytest.approx(variance, rel=0.05)


def test_a_domain_without_weight_stays_without():
    assert (draw_mixtures(PRESENT, draw_settings(floor=0.1), seed=0, count=50)[:, 3] == 0).all()


@pytest.mark.parametrize("end", ["concentration_min", "concentration_max"])
def test_both_ends_of_the_concentration_move_the_spread(end: str):
    wide = {"concentration_min": 2.0, "concentration_max": 50.0}
    other = {"concentration_min": 40.0, "concentration_max": 3.0}[end]
    spread = draw_mixtures(PRESENT, draw_settings(**wide), seed=0, count=5_000).std(axis=0)
    moved = draw_mixtures(PRESENT, draw_settings(**(wide | {end: other})), seed=0, count=5_000)
    factor = moved.std(axis=0)[:3] / spread[:3]
    assert (factor < 0.7).all() if end == "concentration_min" else (factor > 1.3).all()


def test_floors_that_leave_nothing_are_refused():
    with pytest.raises(UserError, match=r"floor 0.4 of 3 domains leaves nothing"):
        draw_mixtures(PRESENT, draw_settings(floor=0.4), seed=0, count=1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30).filter(lambda v: sum(v) > 0.1))
def test_rounded_weights_still_sum_to_1(values: list[float]):
    weights = {f"d{index}": value / sum(values) for index, value in enumerate(values)}
    rounded = rounded_weights(weights)
    assert math.fsum(rounded.values()) == pytest.approx(1.0, abs=1e-12)
    for name, weight in weights.items():
        assert abs(rounded[name] - weight) <= 1e-4 + 1e-12
        assert round(rounded[name], 4) == rounded[name]
