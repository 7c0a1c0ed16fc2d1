from __future__ import annotations

import math

import pytest
import torch

from wrinklefree.stability.norm import gradient_norm


def test_is_the_norm_of_all_entries() -> None:
    gradients = [torch.randn(7, 3), torch.randn(5), torch.randn(())]
    together = torch.cat([gradient.flatten() for gradient in gradients]).double()
    assert gradient_norm(gradients) == pytest.approx(together.norm().item(), rel=1e-6)
    assert gradient_norm([]) == 0.0


def test_bfloat16_gradients_are_accumulated_in_float32() -> None:
    gradient = torch.full((3000,), 1.01).bfloat16()
    expected = math.sqrt(3000) * gradient[0].item()
    assert gradient_norm([gradient]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_entry_makes_it_not_finite(bad: float) -> None:
    assert not math.isfinite(gradient_norm([torch.ones(3), torch.tensor([1.0, bad])]))
