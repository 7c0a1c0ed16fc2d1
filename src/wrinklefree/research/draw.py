"""Mixtures drawn around the present one.

Shapes: N mixtures, D domains.
"""

from __future__ import annotations

import math

import numpy as np

from wrinklefree.errors import UserError
from wrinklefree.research.measure import shared_seed
from wrinklefree.research.settings import DrawSettings

DECIMALS = 4
"""Decimals of weights that people read."""


def mixture_of_run(
    present: dict[str, float], settings: DrawSettings, *, seed: int, run: int
) -> dict[str, float]:
    """The weights that run number ``run`` trains on: a pure function of the arguments."""
    weights_1D = draw_mixtures(present, settings, shared_seed(seed, "regmix", "run", run), 1)
    return {name: float(w) for name, w in zip(present, weights_1D[0], strict=True)}


def draw_mixtures(
    present: dict[str, float], settings: DrawSettings, seed: int, count: int
) -> np.ndarray:
    """``count`` mixtures, float64 [N, D]; every row sums to 1.

    ``floor + (1 - floors) x Dirichlet(concentration x present)``, the concentration log-uniform. A
    domain without a weight in the present mixture has none in those that are drawn.

    Raises
    ------
    UserError : the floors of all domains leave nothing to draw.
    """
    present_D = np.array(list(present.values()), dtype=np.float64)
    has_weight_D = present_D > 0
    left = 1.0 - settings.floor * int(has_weight_D.sum())
    if left <= 0.0:
        raise UserError(
            f"regmix.draw.floor {settings.floor:g} of {int(has_weight_D.sum())} domains leaves"
            " nothing to draw; lower it"
        )
    generator = np.random.Generator(np.random.Philox(seed))
    low, high = math.log(settings.concentration_min), math.log(settings.concentration_max)
    concentrations_N = np.exp(generator.uniform(low, high, size=count))
    weights_ND = np.zeros((count, len(present_D)))
    prior_D = present_D[has_weight_D] / present_D.sum()
    for weights_D, concentration in zip(weights_ND, concentrations_N, strict=True):
        weights_D[has_weight_D] = settings.floor + left * generator.dirichlet(
            concentration * prior_D
        )
    return weights_ND / weights_ND.sum(axis=1, keepdims=True)


def rounded_weights(weights: dict[str, float]) -> dict[str, float]:
    """Weights with few decimals that still sum to 1: the largest remainders are rounded up."""
    units = 10**DECIMALS
    exact = {name: weight * units for name, weight in weights.items()}
    counts = {name: math.floor(value) for name, value in exact.items()}
    missing = units - sum(counts.values())
    by_remainder = sorted(exact, key=lambda name: (counts[name] - exact[name], name))
    for name in by_remainder[:missing]:
        counts[name] += 1
    return {name: count / units for name, count in counts.items()}
