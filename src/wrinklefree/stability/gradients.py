"""Signs of trouble in gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import nn

from wrinklefree.stability.clip import ClipStats
from wrinklefree.stability.norm import whole

LARGE_NORM = 100.0
SMALL_NORM = 0.001
HEALTHY_NORMS = (0.1, 10.0)
"""Between which the norm before clipping is when a training goes well (seeds/004)."""


class GradientWarning(StrEnum):
    """What a norm before clipping says; the value is a message."""

    LARGE = f"the gradient norm is above {LARGE_NORM:g}: lower the learning rate, check the data"
    SMALL = (
        f"the gradient norm is below {SMALL_NORM:g}: gradients vanish, raise the"
        " learning rate, check the initialisation"
    )


@dataclass(frozen=True)
class GradientHealth:
    """The gradients of one step."""

    largest: float
    """Largest entry, with its sign, after clipping."""
    smallest: float
    """Smallest entry, with its sign, after clipping."""
    warning: GradientWarning | None


def gradient_health(parameters: Iterable[nn.Parameter], clip: ClipStats) -> GradientHealth:
    """Look at gradients that ``clip`` was made of, after clipping; 0 where there are none.

    A norm that is not finite gives no warning: it is an error, see :func:`first_non_finite`.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    extremes = [gradient.aminmax() for gradient in gradients if gradient.numel()]
    largest = [whole(extreme.max).float() for extreme in extremes]
    smallest = [whole(extreme.min).float() for extreme in extremes]
    warning = None
    if math.isfinite(clip.raw_norm) and clip.raw_norm > LARGE_NORM:
        warning = GradientWarning.LARGE
    elif clip.raw_norm < SMALL_NORM:
        warning = GradientWarning.SMALL
    return GradientHealth(
        largest=torch.stack(largest).max().item() if largest else 0.0,
        smallest=torch.stack(smallest).min().item() if smallest else 0.0,
        warning=warning,
    )


def healthy_share(norms: Sequence[float]) -> float:
    """The share of gradient norms, before clipping, that are in :data:`HEALTHY_NORMS`."""
    low, high = HEALTHY_NORMS
    return sum(low <= norm <= high for norm in norms) / len(norms)


def first_non_finite(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> str | None:
    """Name of the first parameter whose gradient holds NaN or infinity, or None."""
    for name, parameter in named_parameters:
        # A shard alone would say so on its own rank only.
        if parameter.grad is not None and not whole(parameter.grad.isfinite().all()):
            return name
    return None
