from __future__ import annotations

import math

import numpy as np
import pytest

from wrinklefree.evaluate.history import History
from wrinklefree.evaluate.loss_noise import LEAST_REACH, LossNoise, loss_noise
from wrinklefree.stability.loss_variance import split_variance

MEANS, SPREAD = np.array([2.0, 3.0, 5.0]), 0.5
SHARES = np.array([0.2, 0.5, 0.3])
BETWEEN = SHARES @ (MEANS - SHARES @ MEANS) ** 2


def history_of(domain_SB: np.ndarray, loss_SB: np.ndarray) -> History:
    """What the training loop would report of these rows, one token each."""
    metrics: dict[str, list[float]] = {"train/loss": loss_SB.mean(1).tolist()}
    ones = np.ones(domain_SB.shape[1])
    splits = [
        split_variance(loss, ones, domain) for loss, domain in zip(loss_SB, domain_SB, strict=True)
    ]
    metrics["train/loss_variance"] = [split.total for split in splits]
    for index in range(3):
        inside = domain_SB == index
        counts = inside.sum(1)
        sums = (loss_SB * inside).sum(1)
        share = [n / len(ones) if n else math.nan for n in counts]
        metrics[f"train/share/{index}"] = share
        means = [total / n if n else math.nan for total, n in zip(sums, counts, strict=True)]
        metrics[f"train/loss/{index}"] = means
    steps = list(range(1, len(loss_SB) + 1))
    return History(steps, [step * 100 for step in steps], metrics)


def noise_of(domain_SB: np.ndarray, *, trend: float = 0.0, spread: float = SPREAD) -> LossNoise:
    generator = np.random.default_rng(1)
    loss_SB = MEANS[domain_SB] + generator.normal(0.0, spread, domain_SB.shape)
    loss_SB += trend * np.arange(len(domain_SB))[:, None]
    noise = loss_noise(history_of(domain_SB, loss_SB))
    assert noise is not None
    return noise


def independent(steps: int, rows: int) -> np.ndarray:
    return np.random.default_rng(0).choice(3, size=(steps, rows), p=SHARES)


@pytest.mark.parametrize("trend", [0.0, -0.001])
def test_of_independent_rows_the_parts_are_the_variances_over_the_rows_of_a_step(trend: float):
    rows = 16
    noise = noise_of(independent(4000, rows), trend=trend)
    assert noise.rows_of_stage.within == pytest.approx(SPREAD**2, rel=0.05)
    assert noise.rows_of_stage.between == pytest.approx(BETWEEN, rel=0.05)
    assert noise.steps_of_stage == pytest.approx((BETWEEN + SPREAD**2) / rows, rel=0.05)
    assert noise.composition_of_stage == pytest.approx(BETWEEN / rows, rel=0.05)
    assert noise.composition_share == pytest.approx(BETWEEN / (BETWEEN + SPREAD**2), rel=0.05)


def test_steps_of_fixed_shares_have_no_noise_from_composition_and_keep_the_rest():
    stratified = np.tile(np.repeat([0, 1, 2], [2, 5, 3]), (2000, 1))
    noise = noise_of(stratified)
    assert noise.composition_of_stage < 1e-20
    assert noise.steps_of_stage == pytest.approx(SPREAD**2 / 10, rel=0.1)
    assert noise.rows_of_stage.between == pytest.approx(BETWEEN, rel=0.05)


def test_rows_of_equal_loss_within_domains_leave_all_noise_to_composition():
    noise = noise_of(independent(500, 8), spread=0.0)
    assert noise.composition_share == pytest.approx(1.0, rel=1e-9)
    # Both ways to estimate the total find what is between, and little is left for within.
    assert noise.rows_of_stage.within < 0.06 * BETWEEN


def test_composition_explains_at_most_all_that_is_seen():
    """Rows lose less where their domain loses more, and steps hardly differ."""
    domain_SB = np.tile([[0, 0, 0, 2], [0, 2, 2, 2]], (20, 1))
    loss_SB = MEANS[domain_SB] - 0.9 * (MEANS[domain_SB].mean(1, keepdims=True) - 3.5)
    noise = loss_noise(history_of(domain_SB, loss_SB))
    assert noise is not None
    assert noise.composition_of_stage > 2.0 * noise.steps_of_stage > 0.0
    assert noise.composition_share == 1.0


def test_the_split_of_rows_near_a_step_is_the_one_of_these_rows_where_steps_are_alike():
    """Every step has the same mean, so the variance of its rows is that of all rows."""
    domain_SB = np.tile([0, 1, 2, 2], (5, 1))
    offsets = np.array([0.3, 0.0, -0.3, 0.3])
    loss_SB = MEANS[domain_SB] + np.array([1, -1, 1, -1, 1])[:, None] * (offsets - offsets.mean())
    noise = loss_noise(history_of(domain_SB, loss_SB))
    assert noise is not None
    expected = split_variance(loss_SB.ravel(), np.ones(20), domain_SB.ravel())
    assert noise.within == pytest.approx(np.full(5, expected.within))
    assert noise.between == pytest.approx(np.full(5, expected.between))


def test_noise_around_a_step_is_of_the_steps_near_it():
    quiet = np.tile([0, 1, 2, 2], (200, 1))
    loud = np.where(np.arange(200)[:, None] % 2, [0, 0, 0, 1], [2, 2, 2, 1])
    noise = noise_of(np.concatenate([quiet, loud]), spread=0.01)
    assert noise.composition[: 199 - LEAST_REACH] == pytest.approx(0.0, abs=1e-3)
    middle = noise.composition[200 + LEAST_REACH : -LEAST_REACH]
    # Successive steps differ by 3/4 of what the domains differ by.
    assert middle == pytest.approx(np.full(len(middle), (0.75 * 3.0) ** 2 / 2), rel=0.05)


def test_steps_that_report_no_loss_are_no_steps_and_one_step_has_no_noise():
    history = history_of(independent(3, 4), np.ones((3, 4)))
    history.metrics["train/loss"][1] = math.nan
    noise = loss_noise(history)
    assert noise is not None
    assert noise.tokens.tolist() == [100, 300]
    history.metrics["train/loss"][0] = math.nan
    assert loss_noise(history) is None


def test_a_stage_without_any_noise_has_no_shares():
    noise = loss_noise(history_of(np.zeros((4, 2), dtype=np.int64), np.ones((4, 2))))
    assert noise is not None
    assert noise.as_json() == {
        "rows": {"total": 0.0, "within": 0.0, "between": 0.0, "between_share": None},
        "steps": {"total": 0.0, "composition": 0.0, "composition_share": None},
    }
