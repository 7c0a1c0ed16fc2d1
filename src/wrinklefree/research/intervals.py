"""How sure a difference of two anneals is, when seeds and held-out rows both bring noise.

Every held-out row is scored after every seed's pair of anneals, so rows and seeds are crossed:

    difference(seed, row) = truth + seed's luck + row's luck + the rest

The mean over both has the variance (seeds' / S) + (rows' / R) + (the rest's / (S R)). The variance
of the seeds' means, over S, estimates the first and the third with S - 1 degrees of freedom; the
variance of the rows' means, over R, less the mean square of the rest, over S R, the second. The
interval's half-width is the root of the sum of squares of Student's half-widths of the two (Howe
1974, Journal of the American Statistical Association 69, 789-794; mean squares of crossed designs:
Searle, Casella and McCulloch, Variance Components, 1992, chapter 4).

In simulations (tests/research/test_intervals.py) 95 to 98 % of such 95 % intervals hold the truth,
from 2 seeds on, whichever luck is the larger. At 3 seeds a bootstrap over seeds and rows reached 71
to 83 % where the seeds' luck matters; Student's interval over the seeds' means alone 38 to 54 %
where the rows' does, for all seeds share the rows; one interval with Satterthwaite's degrees of
freedom 92 % where both do.

Shapes: S seeds, R rows of a domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Difference:
    """Loss of the candidate less that of the present mixture, nats per token."""

    mean: float
    low: float
    high: float
    """Ends of the confidence interval."""
    seeds_error: float
    """Standard error from the seeds, and from what is left beside seeds and rows."""
    rows_error: float
    """Standard error from the choice of held-out rows."""
    per_seed: list[float]

    @property
    def verdict(self) -> Verdict:
        """``better`` or ``worse`` where the interval excludes 0."""
        if self.high < 0.0:
            return "better"
        return "worse" if self.low > 0.0 else "undecided"

    def as_json(self) -> dict[str, Any]:
        """The numbers and the verdict."""
        return {"verdict": self.verdict, **vars(self)}


def paired_difference(
    nats: Mapping[str, np.ndarray],
    tokens: Mapping[str, np.ndarray],
    shares: Mapping[str, float],
    confidence: float,
) -> Difference:
    """Mean over domains of their differences of loss, weighted by ``shares``, with its interval.

    Parameters
    ----------
    nats : by domain, float64 [S, R]: nats of the candidate less nats of the present mixture, summed
        over the scored tokens of a row. S is the same for all domains and at least 2, as is R.
    tokens : by domain, [R]: scored tokens of each row, all above 0.
    shares : by domain, not negative; domains of share 0 do not count.
    confidence : of the interval, which is symmetric about the mean.
    """
    from scipy import stats

    per_seed_S = np.zeros(len(next(iter(nats.values()))))
    seeds = len(per_seed_S)
    rows_variances: list[tuple[float, int]] = []
    rest_variance = 0.0
    for name, share in shares.items():
        if not share:
            continue
        loss_SR = _row_differences(nats[name], tokens[name])
        rows = loss_SR.shape[1]
        seeds_mean_S1, rows_mean_R = loss_SR.mean(axis=1, keepdims=True), loss_SR.mean(axis=0)
        rest_SR = loss_SR - rows_mean_R - seeds_mean_S1 + loss_SR.mean()
        rest = float((rest_SR**2).sum()) / ((seeds - 1) * (rows - 1))
        rest_variance += share**2 * rest / (seeds * rows)
        rows_variances.append((share**2 * float(rows_mean_R.var(ddof=1)) / rows, rows - 1))
        per_seed_S += share * seeds_mean_S1[:, 0]
    seeds_error = math.sqrt(float(per_seed_S.var(ddof=1)) / seeds)
    with_rest = sum(variance for variance, _ in rows_variances)
    rows_error = math.sqrt(max(with_rest - rest_variance, 0.0))
    reach = float(stats.t.ppf(0.5 + confidence / 2, seeds - 1)) * seeds_error
    if rows_error:
        freedom = with_rest**2 / sum(v**2 / degrees for v, degrees in rows_variances)
        reach = math.hypot(reach, float(stats.t.ppf(0.5 + confidence / 2, freedom)) * rows_error)
    mean = float(per_seed_S.mean())
    return Difference(
        mean, mean - reach, mean + reach, seeds_error, rows_error, per_seed_S.tolist()
    )


def _row_differences(nats_SR: np.ndarray, tokens_R: np.ndarray) -> np.ndarray:
    """Values per row whose mean over rows is each seed's difference of loss, float64 [S, R].

    The loss of a domain is a ratio, nats over tokens; to first order a row moves it by its nats
    less what its tokens would cost on average.
    """
    loss = nats_SR.sum() / (len(nats_SR) * tokens_R.sum())
    return loss + (nats_SR - loss * tokens_R) / tokens_R.mean()
