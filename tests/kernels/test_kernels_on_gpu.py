"""What is dispatched to a GPU gives what a CPU gives, at the layer shapes of Qwen3-0.6B."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wrinklefree.kernels.packed_matmul import packed_matmul
from wrinklefree.kernels.quantize_activation import quantize_activation
from wrinklefree.kernels.quantize_weights import quantize_weights
from wrinklefree.kernels.subln_quantize import subln_quantize
from wrinklefree.kernels.ternary_matmul import ternary_matmul
from wrinklefree.quant.packing import pack_ternary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
HIDDEN, INNER = 1024, 3072


@pytest.mark.parametrize("scale", ["absmean", "least_squares"])
def test_weights_have_the_same_codes_and_scales(scale) -> None:
    weights = [torch.randn(INNER, HIDDEN), torch.randn(HIDDEN, INNER), torch.randn(63, 31)]
    on_gpu = quantize_weights([weight.cuda() for weight in weights], scale)
    for mine, truth in zip(on_gpu, quantize_weights(weights, scale), strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(mine, truth, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 33, 700])
def test_products_have_the_same_bits(tokens: int, dtype: torch.dtype) -> None:
    activation = torch.randn(tokens, INNER)
    codes, scale = quantize_activation(activation)
    [(weight, weight_scale)] = quantize_weights([torch.randn(HIDDEN, INNER)], "absmean")
    truth = ternary_matmul(codes, scale, weight, weight_scale, dtype)
    operands: list[Tensor] = [codes.cuda(), scale.cuda(), weight.cuda(), weight_scale.cuda()]
    assert torch.equal(ternary_matmul(*operands, dtype).cpu(), truth)
    inside = activation.cuda(), None
    assert torch.equal(ternary_matmul(*inside, *operands[2:], dtype).cpu(), truth)
    operands[2] = pack_ternary(weight).cuda()
    assert torch.equal(packed_matmul(*operands, dtype).cpu(), truth)
    assert torch.equal(packed_matmul(*inside, *operands[2:], dtype).cpu(), truth)


def test_subln_has_the_gradients_of_a_cpu() -> None:
    ends: list[list[Tensor]] = []
    start, gain, gradient = torch.randn(700, INNER), torch.randn(INNER), torch.randn(700, INNER)
    for device in ("cpu", "cuda"):
        leaves = [value.to(device).requires_grad_() for value in (start, gain)]
        normed, codes, scale = subln_quantize(*leaves, 1e-6)
        gradients = torch.autograd.grad(normed, leaves, gradient.to(device))
        ends.append([value.detach().cpu() for value in (codes, scale, *gradients)])
    on_cpu, on_gpu = ends
    assert (on_cpu[0].int() - on_gpu[0].int()).abs().max() <= 1
    for actual, expected in zip(on_gpu[1:], on_cpu[1:], strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)
