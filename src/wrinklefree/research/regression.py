"""From the weights of a mixture to the loss of each domain after a small training.

Shapes: N mixtures, D domains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LOG_OFFSET = 0.01
"""Added to weights before the logarithm. A loss falls about as fast from a share of 0.02 to 0.03
as from 0.1 to 0.15, and below about 1 % other domains teach most of what is learned."""
RIDGES = tuple(np.logspace(-6, 2, 25).tolist())


class DomainRegression:
    """One regression per domain, from a mixture to the domain's held-out loss."""

    def __init__(self, kind: str, weights_ND: np.ndarray, losses_ND: np.ndarray) -> None:
        self._features, build = REGRESSIONS[kind]
        features = self._features(weights_ND)
        self._fitted = [build().fit(features, losses_N) for losses_N in losses_ND.T]

    def predict(self, weights_ND: np.ndarray) -> np.ndarray:
        """Predicted losses (nats per token), float64 [N, D]."""
        features = self._features(weights_ND)
        return np.stack([regressor.predict(features) for regressor in self._fitted], axis=1)


def _as_they_are(weights_ND: np.ndarray) -> np.ndarray:
    return weights_ND


def _logarithms(weights_ND: np.ndarray) -> np.ndarray:
    return np.log(weights_ND + LOG_OFFSET)


def _ridge() -> Any:
    """Ridge regression whose penalty is chosen by leave-one-out."""
    from sklearn.linear_model import RidgeCV

    return RidgeCV(alphas=RIDGES)


def _trees() -> Any:
    """Boosted trees, shallow enough for a few dozen mixtures (the paper's LightGBM has more)."""
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(
        n_estimators=150, learning_rate=0.1, max_depth=2, min_samples_leaf=2, random_state=0
    )


Features = Callable[[np.ndarray], np.ndarray]

REGRESSIONS: dict[str, tuple[Features, Callable[[], Any]]] = {
    "linear": (_as_they_are, _ridge),
    "log_linear": (_logarithms, _ridge),
    "boosted_trees": (_as_they_are, _trees),
}
"""By name in the settings: features of a mixture, and an untrained regressor of scikit-learn."""
