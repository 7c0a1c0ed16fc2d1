from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from wrinklefree.stability.clip import ClipStats
from wrinklefree.stability.gradients import (
    GradientWarning,
    first_non_finite,
    gradient_health,
    healthy_share,
)
from wrinklefree.stability.zclip import ZClip


def clip_of(norm: float) -> ClipStats:
    return ClipStats(norm, norm, was_clipped=False, finite=math.isfinite(norm))


def test_reports_the_extremes_that_the_optimizer_sees() -> None:
    first, second = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(3))
    zclip = ZClip(warmup_steps=2)
    zclip.observe(1.0)
    zclip.observe(1.1)
    first.grad = torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    second.grad = torch.tensor([0.0, 12.0, 0.0])
    stats = zclip.clip([first, second])
    health = gradient_health([first, second, nn.Parameter(torch.ones(1))], stats)
    assert stats.raw_norm == 13.0
    shrunk = stats.clipped_norm / 13
    assert shrunk < 2 / 13
    assert (health.largest, health.smallest) == pytest.approx((12 * shrunk, -4 * shrunk))
    assert health.warning is None


@pytest.mark.parametrize(
    ("norm", "warning"),
    [
        (100.1, GradientWarning.LARGE),
        (100.0, None),
        (0.001, None),
        (0.0009, GradientWarning.SMALL),
        (0.0, GradientWarning.SMALL),
        (math.nan, None),
        (math.inf, None),
    ],
)
def test_warns_above_a_hundred_and_below_a_thousandth(
    norm: float, warning: GradientWarning | None
) -> None:
    assert gradient_health([], clip_of(norm)).warning is warning


def test_norms_of_a_tenth_to_ten_are_healthy() -> None:
    assert healthy_share([0.1, 10.0, 0.099, 10.1, math.nan]) == 2 / 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_names_the_first_parameter_whose_gradient_is_not_finite(bad: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    assert first_non_finite(model.named_parameters()) is None
    model[0].weight.grad = None
    model[1].bias.grad[1] = bad
    model[2].weight.grad[0, 0] = bad
    assert first_non_finite(model.named_parameters()) == "1.bias"
