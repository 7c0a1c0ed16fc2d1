"""Where the noise of the loss comes from: the domains, or the rows within them.

By the law of total variance, ``Var(l) = E_d[Var(l | d)] + Var_d(E[l | d])`` for the loss l of a row
(nats per token) of domain d. The second part is there however good the model is: code is more
predictable than prose. It alone depends on which domains a step happens to draw.

Shapes: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class VarianceSplit:
    """A variance in two parts, nats²."""

    within: float
    """Mean over domains of the variance within each."""
    between: float
    """Variance of the domains' means."""

    @property
    def total(self) -> float:
        """Variance of all rows together: the sum of the parts."""
        return self.within + self.between

    @property
    def between_share(self) -> float | None:
        """The part of the total that is between domains; None where nothing varies."""
        return self.between / self.total if self.total else None

    def as_json(self) -> dict[str, float | None]:
        """All four numbers."""
        return {
            "total": self.total,
            "within": self.within,
            "between": self.between,
            "between_share": self.between_share,
        }


def split_variance(loss_B: np.ndarray, weight_B: np.ndarray, domain_B: np.ndarray) -> VarianceSplit:
    """Variance of row losses around their weighted mean, within and between domains.

    Parameters
    ----------
    loss_B : float64, nats per token of each row; of rows without weight it may be anything.
    weight_B : tokens of each row, or anything proportional to its weight; not all are 0.
    domain_B : int64, the domain of each row, from 0.

    A loss that is not finite gives NaN. This is the split of these very rows: with few rows of a
    domain its mean is itself noisy, which counts as between. D domains in B rows move about
    (D - 1) / B of the true within over.
    """
    present_B = weight_B > 0
    loss_B, domain_B = loss_B[present_B], domain_B[present_B]
    weight_B = weight_B[present_B] / weight_B.sum()
    weight_D = np.bincount(domain_B, weight_B)
    mean_D = np.bincount(domain_B, weight_B * loss_B) / np.where(weight_D > 0, weight_D, 1.0)
    with np.errstate(invalid="ignore"):
        within = weight_B @ (loss_B - mean_D[domain_B]) ** 2
        between = weight_D @ (mean_D - weight_B @ loss_B) ** 2
    return VarianceSplit(float(within), float(between))
