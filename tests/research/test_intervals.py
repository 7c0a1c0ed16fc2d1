from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wrinklefree.research.intervals import Difference, paired_difference

SEEDS, ROWS = 3, 12


def draw(
    generator: np.random.Generator, luck: tuple[float, float, float], domains: int, truth: float
) -> dict[str, Any]:
    """Nats and tokens of made-up differences whose truth, seeds, rows and rest are known."""
    seeds_sd, rows_sd, rest_sd = luck
    seeds_S1 = generator.normal(0, seeds_sd, (SEEDS, 1))
    nats, tokens = {}, {}
    for domain in "abcde"[:domains]:
        rows_R = generator.normal(0, rows_sd, ROWS)
        rest_SR = generator.normal(0, rest_sd, (SEEDS, ROWS))
        tokens[domain] = generator.integers(200, 256, ROWS)
        nats[domain] = (truth + seeds_S1 + rows_R + rest_SR) * tokens[domain]
    return {"nats": nats, "tokens": tokens}


@pytest.mark.parametrize("domains", [1, 4])
@pytest.mark.parametrize(
    "luck",
    [
        (0.03, 0.0, 0.0),  # of seeds only
        (0.0, 0.05, 0.01),  # of rows
        (0.0, 0.0, 0.05),  # of neither
        (0.015, 0.05, 0.05),  # of all, in about equal parts
        (0.03, 0.05, 0.1),
    ],
)
def test_intervals_of_95_percent_hold_the_truth_about_that_often(
    luck: tuple[float, float, float], domains: int
):
    generator = np.random.default_rng(7)
    shares = dict.fromkeys("abcde"[:domains], 1 / domains)
    cases = 800
    held = 0
    for _ in range(cases):
        found = paired_difference(
            **draw(generator, luck, domains, 0.01), shares=shares, confidence=0.95
        )
        held += found.low <= 0.01 <= found.high
    # Binomial noise has a standard deviation of 0.8 %; the method may be 3 % too careful.
    assert 0.95 - 0.024 <= held / cases <= 0.98 + 0.015


def test_the_interval_is_that_of_the_crossed_design():
    generator = np.random.default_rng(1)
    tokens_R = np.full(ROWS, 10)
    loss_SR = generator.normal(0, 1, (SEEDS, ROWS)) + generator.normal(0, 1, ROWS)
    found = paired_difference({"a": loss_SR * 10}, {"a": tokens_R}, {"a": 1.0}, 0.9)
    mean = loss_SR.mean()
    rest = 0.0
    for s in range(SEEDS):
        for r in range(ROWS):
            rest += (loss_SR[s, r] - loss_SR[s].mean() - loss_SR[:, r].mean() + mean) ** 2
    rest /= (SEEDS - 1) * (ROWS - 1)
    seeds = sum((loss_SR[s].mean() - mean) ** 2 for s in range(SEEDS)) / (SEEDS - 1) / SEEDS
    rows = sum((loss_SR[:, r].mean() - mean) ** 2 for r in range(ROWS)) / (ROWS - 1) / ROWS
    rows -= rest / (SEEDS * ROWS)
    assert found.mean == pytest.approx(mean)
    assert found.seeds_error == pytest.approx(math.sqrt(seeds))
    assert found.rows_error == pytest.approx(math.sqrt(rows))
    reach = math.hypot(
        stats.t.ppf(0.95, SEEDS - 1) * math.sqrt(seeds),
        stats.t.ppf(0.95, ROWS - 1) * math.sqrt(rows),
    )
    assert (found.low, found.high) == pytest.approx((mean - reach, mean + reach))


def test_the_mean_is_the_difference_of_the_domains_losses_by_their_shares():
    made = draw(np.random.default_rng(3), (0.1, 0.2, 0.1), 3, 0.5)
    shares = {"a": 0.2, "b": 0.8, "c": 0.0}
    found = paired_difference(**made, shares=shares, confidence=0.95)
    losses = {name: made["nats"][name].sum(axis=1) / made["tokens"][name].sum() for name in "abc"}
    expected_S = 0.2 * losses["a"] + 0.8 * losses["b"]
    assert found.per_seed == pytest.approx(expected_S.tolist())
    assert found.mean == pytest.approx(expected_S.mean())


def test_a_longer_row_counts_for_more():
    tokens = {"a": np.array([10, 30])}
    found = paired_difference({"a": np.array([[10.0, 0.0]] * 2)}, tokens, {"a": 1.0}, 0.95)
    assert found.mean == pytest.approx(10 / 40)


def test_no_difference_at_all_is_exactly_0_and_undecided():
    zeros = {"a": np.zeros((SEEDS, ROWS)), "b": np.zeros((SEEDS, ROWS))}
    tokens = {"a": np.arange(1, ROWS + 1), "b": np.arange(1, ROWS + 1)}
    found = paired_difference(zeros, tokens, {"a": 0.5, "b": 0.5}, 0.95)
    assert (found.mean, found.low, found.high, found.verdict) == (0.0, 0.0, 0.0, "undecided")


def test_more_confidence_makes_a_wider_interval():
    made = draw(np.random.default_rng(3), (0.1, 0.2, 0.1), 2, 0.0)
    widths = [
        found.high - found.low
        for confidence in (0.5, 0.95, 0.99)
        for found in [paired_difference(**made, shares={"a": 1, "b": 1}, confidence=confidence)]
    ]
    assert widths == sorted(set(widths))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-2.0, -0.1, "better"), (0.1, 2.0, "worse"), (-0.1, 0.1, "undecided"), (0, 1, "undecided")],
)
def test_the_verdict_says_on_which_side_of_0_the_interval_is(low: float, high: float, verdict: str):
    assert Difference(0.0, low, high, 0.0, 0.0, []).verdict == verdict
