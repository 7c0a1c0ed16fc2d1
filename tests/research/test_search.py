from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from wrinklefree.research.regression import LOG_OFFSET
from wrinklefree.research.search import agreement, find_best
from wrinklefree.research.settings import FitSettings

RNG = np.random.default_rng(2)
WEIGHTS_ND = RNG.dirichlet([1.0, 1.0, 1.0], size=30)
CANDIDATES_CD = RNG.dirichlet([1.0, 1.0, 1.0], size=4000)
PRESENT_D = np.array([1 / 3, 1 / 3, 1 / 3])
TARGET_D = np.array([0.5, 0.25, 0.25])
SLOPES_D = np.array([0.2, 0.6, 0.2])


def fit_settings(**changes: Any) -> FitSettings:
    values = {
        "held_out_runs": 3,
        "regression": "log_linear",
        "candidates": 4000,
        "best_candidates": 20,
        "bootstraps": 40,
    }
    return FitSettings(**(values | changes))


def losses(weights_ND: np.ndarray, noise: float = 0.0) -> np.ndarray:
    exact_ND = 3.0 - SLOPES_D * np.log(weights_ND + LOG_OFFSET)
    return exact_ND + np.random.default_rng(0).normal(0, noise, exact_ND.shape)


def best(losses_ND: np.ndarray, target_D: np.ndarray = TARGET_D, **changes: Any) -> Any:
    return find_best(
        WEIGHTS_ND[: len(losses_ND)], losses_ND, CANDIDATES_CD, PRESENT_D, target_D,
        fit_settings(**changes), seed=1,
    )  # fmt: skip


def test_the_best_mixture_of_a_known_law_is_found():
    # The sum of t log(w + offset) under sum w = 1 is best at w + offset in proportion to t x slope.
    importance_D = TARGET_D * SLOPES_D
    optimum_D = importance_D / importance_D.sum() * (1 + 3 * LOG_OFFSET) - LOG_OFFSET
    assert best(losses(WEIGHTS_ND)).weights_D == pytest.approx(optimum_D, abs=0.03)


def test_another_target_has_another_best_mixture():
    found_D = best(losses(WEIGHTS_ND), target_D=np.array([1.0, 0.0, 0.0])).weights_D
    assert found_D[0] > 0.9


def test_one_best_candidate_is_the_candidate_with_the_least_prediction():
    found_D = best(losses(WEIGHTS_ND), best_candidates=1).weights_D
    truth_C = losses(CANDIDATES_CD) @ TARGET_D
    assert np.array_equal(found_D, CANDIDATES_CD[truth_C.argmin()])
    assert not np.array_equal(found_D, best(losses(WEIGHTS_ND), best_candidates=9).weights_D)


def test_the_predicted_gain_is_the_true_one_where_the_law_is_exact():
    found = best(losses(WEIGHTS_ND))
    now, then = losses(np.stack([PRESENT_D, found.weights_D])) @ TARGET_D
    assert found.bootstrap_gains_Q == pytest.approx(np.full(40, now - then), abs=1e-3)


def test_noise_and_fewer_runs_widen_the_bootstrap():
    def spread(losses_ND: np.ndarray) -> float:
        return float(best(losses_ND).bootstrap_weights_QD.std(axis=0).mean())

    noisy_ND = losses(WEIGHTS_ND, noise=0.1)
    assert spread(losses(WEIGHTS_ND)) < 0.01 < spread(noisy_ND) < spread(noisy_ND[:10])


def test_each_bootstrap_is_counted():
    assert best(losses(WEIGHTS_ND), bootstraps=25).bootstrap_weights_QD.shape == (25, 3)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_that_of_scipy_and_its_p_value_counts_the_orders(ties: bool):
    measured_N = np.array([1.0, 2.0, 4.0, 3.0, 5.0, 7.0])
    predicted_N = np.array([1.0, 1.0 if ties else 1.5, 3.0, 4.0, 4.0 if ties else 6.0, 5.0])
    found = agreement(predicted_N, measured_N, mean=0.0)
    expected = stats.spearmanr(predicted_N, measured_N).statistic
    assert found.rank_correlation == pytest.approx(expected, abs=1e-12)
    orders = [
        stats.spearmanr(order, measured_N).statistic
        for order in itertools.permutations(predicted_N)
    ]
    assert found.p_value == pytest.approx(np.mean(np.array(orders) >= expected - 1e-9))


def test_errors_are_root_mean_squares():
    found = agreement(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 5.0]), mean=2.0)
    assert found.error == pytest.approx(np.sqrt(5 / 3))
    assert found.error_of_mean == pytest.approx(np.sqrt(9 / 3))


def test_equal_predictions_have_no_rank_correlation():
    found = agreement(np.ones(4), np.arange(4.0), mean=1.0)
    assert (found.rank_correlation, found.p_value) == (None, None)
