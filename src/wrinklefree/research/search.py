"""The mixture that a regression predicts to be best, and how sure that is.

Shapes: N mixtures of the runs, C candidates, D domains, Q bootstraps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wrinklefree.research.regression import DomainRegression
from wrinklefree.research.settings import FitSettings

PERMUTATIONS = 10_000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Agreement:
    """Predictions against measurements on mixtures that the regression was not fitted on."""

    rank_correlation: float | None
    """Spearman's; None where all predictions are equal."""
    p_value: float | None
    """Share of all orders of the mixtures that would agree as well or better."""
    error: float
    """Root mean square of predicted less measured, nats per token."""
    error_of_mean: float
    """The same if the mean of the fitted runs is predicted for every mixture."""

    def as_json(self) -> dict[str, float | None]:
        """The four numbers."""
        return dict(vars(self))


@dataclass(frozen=True)
class Best:
    """The proposed mixture. Shapes as above."""

    weights_D: np.ndarray
    """Mean of the best candidates."""
    bootstrap_weights_QD: np.ndarray
    """What each fit on runs drawn with replacement would propose."""
    bootstrap_gains_Q: np.ndarray
    """What each of those fits predicts for ``weights_D``: target loss of the present mixture less
    that of ``weights_D``."""


def agreement(predicted_N: np.ndarray, measured_N: np.ndarray, mean: float) -> Agreement:
    """How well predictions order and hit what was measured.

    Parameters
    ----------
    mean : of the measurements that the regression was fitted on.
    """
    correlation = p_value = None
    if np.ptp(predicted_N) > 0 and np.ptp(measured_N) > 0:
        correlation, p_value = _rank_correlation(predicted_N, measured_N)
    return Agreement(
        rank_correlation=correlation,
        p_value=p_value,
        error=float(np.sqrt(np.mean((predicted_N - measured_N) ** 2))),
        error_of_mean=float(np.sqrt(np.mean((mean - measured_N) ** 2))),
    )


def _rank_correlation(predicted_N: np.ndarray, measured_N: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation and its one-sided p-value: exact for few mixtures."""
    from scipy import stats

    ranks_N = stats.rankdata(measured_N)

    def correlation(permuted_N: np.ndarray, axis: int = -1) -> Any:
        a = permuted_N - permuted_N.mean(axis=axis, keepdims=True)
        b_N = ranks_N - ranks_N.mean()
        return (a * b_N).sum(axis=axis) / np.sqrt((a**2).sum(axis=axis) * (b_N**2).sum())

    result = stats.permutation_test(
        (stats.rankdata(predicted_N),),
        correlation,
        permutation_type="pairings",
        alternative="greater",
        vectorized=True,
        n_resamples=PERMUTATIONS,
        rng=np.random.default_rng(0),
    )
    return float(result.statistic), float(result.pvalue)


def find_best(
    weights_ND: np.ndarray,
    losses_ND: np.ndarray,
    candidates_CD: np.ndarray,
    present_D: np.ndarray,
    target_D: np.ndarray,
    settings: FitSettings,
    seed: int,
) -> Best:
    """Predict the target loss of every candidate and average the best ones (section 3.2).

    Fits and search are then repeated on runs drawn with replacement: the spread of what they
    propose and predict is the uncertainty from having so few runs. It is not that of the small
    trainings themselves, nor does it know how far they speak for larger ones.
    """
    count = settings.best_candidates

    def search(regression: DomainRegression) -> np.ndarray:
        order_C = np.argsort(regression.predict(candidates_CD) @ target_D, kind="stable")
        return candidates_CD[order_C[:count]].mean(axis=0)

    best_D = search(DomainRegression(settings.regression, weights_ND, losses_ND))
    generator = np.random.default_rng(seed)
    proposals, gains = [], []
    for _ in range(settings.bootstraps):
        drawn_N = generator.integers(0, len(weights_ND), size=len(weights_ND))
        regression = DomainRegression(settings.regression, weights_ND[drawn_N], losses_ND[drawn_N])
        present, best = regression.predict(np.stack([present_D, best_D])) @ target_D
        proposals.append(search(regression))
        gains.append(float(present - best))
    return Best(best_D, np.stack(proposals), np.array(gains))
