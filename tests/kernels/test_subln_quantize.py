from __future__ import annotations

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from wrinklefree.kernels.quantize_activation import quantize_activation
from wrinklefree.kernels.subln_quantize import subln_quantize

EPSILON = 1e-3  # large, so that leaving it out would show


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_those_of_the_norm_of_transformers(dtype: torch.dtype) -> None:
    activation = torch.randn(2, 7, 63).to(dtype)
    norm = LlamaRMSNorm(63, eps=EPSILON)
    norm.weight.data.normal_(1.0, 0.3)
    expected_codes, expected_scale = quantize_activation(norm(activation))
    normed, codes, scale = subln_quantize(activation, norm.weight, EPSILON)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)
    assert normed.shape == activation.shape
    assert normed.dtype == norm(activation).dtype


def test_gradients_are_those_of_the_norm() -> None:
    activation, gradient = torch.randn(2, 2, 7, 63, dtype=torch.float64)
    activation.requires_grad_()
    gain = torch.randn(63, dtype=torch.float64, requires_grad=True)
    mean_square = activation.square().mean(-1, keepdim=True)
    truth = gain * activation / (mean_square + EPSILON).sqrt()
    expected = torch.autograd.grad(truth, (activation, gain), gradient)
    normed, codes, _ = subln_quantize(activation, gain, EPSILON)
    assert not codes.requires_grad
    for actual, wanted in zip(
        torch.autograd.grad(normed, (activation, gain), gradient), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted)


def test_nothing_of_the_size_of_the_normed_activation_is_saved_or_returned() -> None:
    activation = torch.randn(7, 63, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        normed, _, _ = subln_quantize(activation, torch.ones(63, requires_grad=True), EPSILON)
    large = {t.untyped_storage().data_ptr() for t in saved if t.numel() >= activation.numel()}
    assert large == {activation.untyped_storage().data_ptr()}
    assert normed.untyped_storage().nbytes() == 4
