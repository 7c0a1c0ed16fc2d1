from __future__ import annotations

import numpy as np
import pytest

from wrinklefree.research.regression import LOG_OFFSET, REGRESSIONS, DomainRegression

RNG = np.random.default_rng(5)
WEIGHTS_ND = RNG.dirichlet([1.5, 1.0, 1.0, 1.0], size=24)
NEW_ND = RNG.dirichlet([1.5, 1.0, 1.0, 1.0], size=50)


def linear(weights_ND: np.ndarray) -> np.ndarray:
    return 4.0 - weights_ND * [1.0, 2.0, 0.5, 1.5] + 0.3 * weights_ND[:, ::-1]


def logarithmic(weights_ND: np.ndarray) -> np.ndarray:
    return 4.0 - np.log(weights_ND + LOG_OFFSET) * [0.3, 0.2, 0.4, 0.1]


def steps(weights_ND: np.ndarray) -> np.ndarray:
    return 4.0 - (weights_ND > 0.2)


LAWS = {"linear": linear, "log_linear": logarithmic, "boosted_trees": steps}


def error(kind: str, law: str) -> float:
    """Root mean square over new mixtures, relative to the spread of the truth."""
    regression = DomainRegression(kind, WEIGHTS_ND, LAWS[law](WEIGHTS_ND))
    truth_ND = LAWS[law](NEW_ND)
    return float(np.sqrt(((regression.predict(NEW_ND) - truth_ND) ** 2).mean()) / truth_ND.std())


@pytest.mark.parametrize("kind", ["linear", "log_linear"])
def test_a_law_of_its_own_form_is_found_exactly(kind: str):
    assert error(kind, kind) < 1e-3


@pytest.mark.parametrize("law", sorted(LAWS))
def test_each_regression_is_the_best_where_the_law_is_its_own(law: str):
    assert min(REGRESSIONS, key=lambda kind: error(kind, law)) == law


def test_each_domain_has_its_own_regression():
    losses_ND = linear(WEIGHTS_ND)
    before_ND = DomainRegression("linear", WEIGHTS_ND, losses_ND).predict(NEW_ND)
    losses_ND[:, 2] += WEIGHTS_ND[:, 0]
    after_ND = DomainRegression("linear", WEIGHTS_ND, losses_ND).predict(NEW_ND)
    assert np.array_equal(np.delete(before_ND, 2, axis=1), np.delete(after_ND, 2, axis=1))
    assert np.allclose(after_ND[:, 2] - before_ND[:, 2], NEW_ND[:, 0], atol=1e-3)


@pytest.mark.parametrize("kind", sorted(REGRESSIONS))
def test_a_fit_repeats_to_the_bit(kind: str):
    noisy_ND = linear(WEIGHTS_ND) + np.random.default_rng(0).normal(0, 0.1, WEIGHTS_ND.shape)
    first, second = (DomainRegression(kind, WEIGHTS_ND, noisy_ND).predict(NEW_ND) for _ in "12")
    assert np.array_equal(first, second)
