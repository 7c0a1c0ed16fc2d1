"""ParetoQ's quantizer against its formula and gradients written out, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.learned_scale import LearnedScale, alpha_of, learned_scale
from wrinklefree.quant.scales import fitted_scale
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.quant.ternary import ternary_codes

VECTORS = pytest.mark.parametrize("vectors", [1, 9, 63, 189])
STRENGTHS = pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])


class Published(torch.autograd.Function):
    """Equations of arXiv 2502.02631, row by row; Qp is 1."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(weight, alpha)
        rows = zip(weight, alpha, strict=True)
        return torch.stack([a * ((w / a).clamp(-0.99, 0.99) * 1.5).round() / 1.5 for w, a in rows])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        weight, alpha = ctx.saved_tensors
        weight_gradient, alpha_gradient = torch.zeros_like(weight), torch.zeros_like(alpha)
        for row, a in enumerate(alpha):
            for column, w in enumerate(weight[row]):
                g = gradients[0][row, column]
                if abs(w / a) < 0.99:
                    q = a * ((w / a) * 1.5).round() / 1.5
                    weight_gradient[row, column] = g
                    alpha_gradient[row] += g * (q - w) / a
                else:
                    alpha_gradient[row] += g * w.sign()
        return weight_gradient, alpha_gradient / weight.shape[1] ** 0.5


def example(vectors: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, alphas of which some clip many weights and some none, and a gradient."""
    weight = torch.randn(63, 192, dtype=torch.float64)
    alpha = torch.rand(vectors, dtype=torch.float64) * 3 + 0.5
    return weight, alpha, torch.randn(63, 192, dtype=torch.float64)


@VECTORS
@STRENGTHS
def test_values_and_gradients_are_the_published_ones(vectors: int, strength: float) -> None:
    weight, alpha, gradient = example(vectors)
    found, expected = (
        (weight.clone().requires_grad_(), alpha.clone().requires_grad_()) for _ in range(2)
    )
    output: Any = LearnedScale.apply(*found, strength)
    output.backward(gradient)
    quantized: Any = Published.apply(expected[0].reshape(vectors, -1), expected[1])
    dense = expected[0]
    truth = (1 - strength) * dense + strength * quantized.reshape(63, 192)
    truth.backward(gradient)
    torch.testing.assert_close(output.detach(), truth.detach())
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_beyond_the_clip_the_gradient_of_alpha_is_the_sign_where_the_slope_is_two_thirds() -> None:
    """The paper's estimate, as everyone trains it; the exact slope is in the last line."""
    weight, alpha = torch.tensor([[2.0, -3.0, 5.0, 2.5]]).double(), torch.tensor([0.8]).double()
    alpha.requires_grad_()
    output: Any = LearnedScale.apply(weight, alpha, 1.0)
    output.backward(torch.tensor([[1.0, 1.0, 1.0, 2.0]]).double())
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx((1 - 1 + 1 + 2) / 2)
    step = 1e-4
    larger: Any = LearnedScale.apply(weight, alpha.detach() + step, 1.0)
    slope = (larger - output.detach()) / step
    torch.testing.assert_close(slope, weight.sign() * 2 / 3)


@VECTORS
def test_codes_and_scales_are_those_of_the_values_to_the_bit(vectors: int) -> None:
    weight, alpha, _ = example(vectors)
    weight, alpha = weight.float(), alpha.float()
    values: Any = LearnedScale.apply(weight, alpha, 1.0)
    codes, scale = ternary_codes(weight, "learned", vectors, alpha)
    assert torch.equal(codes * scale, values)
    torch.testing.assert_close(
        scale.expand(63, 192), (alpha * 2 / 3).repeat_interleave(63 * 192 // vectors).view(63, 192)
    )


@pytest.mark.parametrize("granularity", ["tensor", "head", "row", "group"])
def test_a_layer_starts_with_the_codes_of_least_squares(granularity: str) -> None:
    chosen = {"scale": "learned", "granularity": granularity, "group_size": 64}
    layer = BitLinear(192, 63, quantizer=QuantizerSettings.model_validate(chosen), head_size=7)
    other = {**chosen, "scale": "least_squares"}
    fixed = BitLinear(192, 63, quantizer=QuantizerSettings.model_validate(other), head_size=7)
    fixed.weight = layer.weight
    (codes, scale), (expected, expected_scale) = layer.ternary_codes(), fixed.ternary_codes()
    assert torch.equal(codes, expected)
    torch.testing.assert_close(scale, expected_scale)


@pytest.mark.parametrize("value", [0.0, -0.3])
def test_a_scale_stays_above_zero_whatever_training_made_of_alpha(value: float) -> None:
    weight, alpha = torch.randn(2, 32), torch.tensor([value, 1.0])
    output: Any = LearnedScale.apply(weight, alpha, 1.0)
    assert output.isfinite().all()
    assert learned_scale(alpha)[0].item() == pytest.approx(1e-5)
    assert output[0].abs().max().item() == pytest.approx(1e-5)


def test_descent_finds_the_scale_of_least_squares() -> None:
    weight = torch.randn(3, 4000, dtype=torch.float64)
    alpha = alpha_of(fitted_scale(weight, "absmean")).requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=0.01)
    errors = []
    for _ in range(200):
        values: Any = LearnedScale.apply(weight, alpha, 1.0)
        error = (values - weight).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    best, _ = ternary_codes(weight, "least_squares", 3)
    least = fitted_scale(weight, "least_squares")
    expected = (best * least - weight).square().mean().item()
    assert errors[0] > 1.2 * expected
    assert errors[-1] == pytest.approx(expected, rel=0.05)
