"""How noisy the training loss is, and how much of that comes from the mixture. Imports no torch.

Two questions, answered around every step from the steps near it:

* Rows: what part of the variance of row losses is between domains? The split that a step itself
  reports counts the noise of a domain's mean over its few rows as between; means over a window of
  steps have little of it.
* Steps: what part of the variance of step losses is there because steps draw different shares of
  the domains? Steps of fixed shares (stratified ones) would be rid of it; ours keep what rounding
  to whole rows leaves. For rows drawn independently it is the variance between domains over the
  rows of a step.

Variances of steps are half the mean squared difference of successive steps (von Neumann 1941), in
which the trend of the loss hardly counts.

Shapes: S steps, D domains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from wrinklefree.evaluate.history import History
from wrinklefree.evaluate.smoothing import moving_average
from wrinklefree.stability.loss_variance import VarianceSplit

LEAST_REACH = 10
"""Neighbours on either side at least: a variance of fewer steps says little."""


@dataclass(frozen=True)
class LossNoise:
    """Variances (nats²) around every step, float64 [S], and of the whole stage."""

    tokens: np.ndarray
    """Training tokens after each step."""
    within: np.ndarray
    """Variance of row losses within domains."""
    between: np.ndarray
    """Variance of row losses between domains."""
    steps: np.ndarray
    """Variance of step losses."""
    composition: np.ndarray
    """Variance of step losses if every row lost what its domain loses on average."""
    rows_of_stage: VarianceSplit
    """Mean of ``within`` and of ``between``."""
    steps_of_stage: float
    """Mean of ``steps``, each pair of successive steps counted once."""
    composition_of_stage: float
    """Likewise of ``composition``."""

    @property
    def composition_share(self) -> float | None:
        """Part of the variance of step losses that comes from the shares of domains in steps.

        1 where that alone is as much as is seen, or more: what it explains was undone by the noise
        within domains, as happens over few steps.
        """
        part, whole = self.composition_of_stage, self.steps_of_stage
        return min(part / whole, 1.0) if whole else None

    def as_json(self) -> dict[str, Any]:
        """``training_noise.<stage>`` of ``evaluation.json``."""
        return {
            "rows": self.rows_of_stage.as_json(),
            "steps": {
                "total": self.steps_of_stage,
                "composition": self.composition_of_stage,
                "composition_share": self.composition_share,
            },
        }


def loss_noise(history: History) -> LossNoise | None:
    """The noise of a stage's training loss; None for a single step, which has nothing beside it."""
    loss_S = np.array(history.series("train/loss"))
    finite_S = np.isfinite(loss_S)
    if finite_S.sum() < 2:
        return None
    loss_S = loss_S[finite_S]
    share_SD, loss_SD = (
        np.nan_to_num(np.array([history.series(f"train/{kind}/{d}") for d in history.domains()]).T)
        for kind in ("share", "loss")
    )
    share_SD, loss_SD = share_SD[finite_S], loss_SD[finite_S]
    reach = max(LEAST_REACH, len(loss_S) // 40)
    near_share_SD = _smooth(share_SD, reach)
    near_nats_SD = _smooth(share_SD * loss_SD, reach)
    mean_SD = near_nats_SD / np.where(near_share_SD > 0, near_share_SD, 1.0)
    mean_S = near_nats_SD.sum(1, keepdims=True)
    between_S = (near_share_SD * (mean_SD - mean_S) ** 2).sum(1)
    # A pair for every step but the last.
    steps_P = np.diff(loss_S) ** 2 / 2
    composition_P = (np.diff(share_SD, axis=0) * mean_SD[:-1]).sum(1) ** 2 / 2
    steps_S, composition_S = (_over_pairs(pairs, reach) for pairs in (steps_P, composition_P))
    inside_S = np.array(history.series("train/loss_variance"))[finite_S]
    total_S = _smooth(inside_S[:, None], reach)[:, 0] + steps_S
    within_S = np.maximum(total_S - between_S, 0.0)
    return LossNoise(
        tokens=np.array(history.tokens, dtype=np.float64)[finite_S],
        within=within_S,
        between=between_S,
        steps=steps_S,
        composition=composition_S,
        rows_of_stage=VarianceSplit(float(within_S.mean()), float(between_S.mean())),
        steps_of_stage=float(steps_P.mean()),
        composition_of_stage=float(composition_P.mean()),
    )


def _smooth(values_SD: np.ndarray, reach: int) -> np.ndarray:
    return np.array([moving_average(column.tolist(), reach) for column in values_SD.T]).T


def _over_pairs(values_P: np.ndarray, reach: int) -> np.ndarray:
    """Mean over the pairs near each step, of which there is one fewer than steps."""
    near_P = np.array(moving_average(values_P.tolist(), reach))
    return np.append(near_P, near_P[-1])
