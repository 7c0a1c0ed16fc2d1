"""What is dispatched to a GPU gives what a CPU gives, at the layer shapes of Qwen3-0.6B."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from wrinklefree.kernels.packed_matmul import packed_matmul
from wrinklefree.kernels.quantize_activation import quantize_activation
from wrinklefree.kernels.quantize_weights import quantize_weights
from wrinklefree.kernels.relation_loss import relation_divergence
from wrinklefree.kernels.relation_loss.reference import relation_divergence as relation_definition
from wrinklefree.kernels.subln_quantize import subln_quantize
from wrinklefree.kernels.symmetric_product import gram, polynomial
from wrinklefree.kernels.ternary_linear import reference, ternary_linear
from wrinklefree.kernels.ternary_linear.products import BackEnd
from wrinklefree.kernels.ternary_matmul import ternary_matmul
from wrinklefree.kernels.vocabulary_loss import cross_entropy, divergence
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [False, True], ids=["tensor", "row"])
@pytest.mark.parametrize("tokens", [1, 17, 33, 700])
def test_a_layer_has_the_bits_of_a_cpu_whatever_multiplies(
    tokens: int, rows: bool, dtype: torch.dtype
) -> None:
    # 63 inputs are no multiple of 8, which CUDA's own product of int8 wants.
    for inputs in (INNER, 63):
        activation = quantize_activation(torch.randn(tokens, inputs))
        weight = torch.randint(-1, 2, (HIDDEN, inputs), dtype=torch.int8)
        scale = torch.rand(HIDDEN, 1) + 0.01 if rows else torch.tensor(0.02)
        truth = reference.ternary_linear(*activation, weight, scale).to(dtype)
        operands = [tuple(t.cuda() for t in pair) for pair in (activation, (weight, scale))]
        leaves = [torch.empty(codes.shape, device="cuda") for codes, _ in operands]
        for back_end in get_args(BackEnd):
            found = ternary_linear(*leaves, *operands, back_end=back_end, dtype=dtype)
            assert torch.equal(found.cpu(), truth), (back_end, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(HIDDEN, INNER), (INNER, HIDDEN), (3, 130, 67)], ids=str)
def test_symmetric_products_are_symmetric_and_those_of_a_cpu(shape, dtype: torch.dtype) -> None:
    matrix = torch.randn(shape)
    matrix = (matrix / matrix.norm()).to(dtype)
    for function, *numbers in ((gram,), (polynomial, -4.775, 2.0315)):
        truth = function(matrix.double(), *numbers)
        found = function(matrix.cuda(), *numbers)
        assert torch.equal(found, found.mT)
        error = (found.cpu().double() - truth).norm() / truth.norm()
        assert error <= (4e-3 if dtype == torch.bfloat16 else 1e-6)
        matrix = found.cpu()


@pytest.mark.parametrize("causal", [False, True])
def test_relations_and_their_gradient_are_those_of_the_definition(causal: bool) -> None:
    student, teacher = (normalize(torch.randn(8, 300, size), dim=-1) for size in (64, 96))
    piece_BT = torch.arange(300).expand(2, -1) // 130
    choices = {"causal": causal, "temperature": 0.2}
    ends = []
    for function, move in (
        (relation_definition, lambda t: t.double()),
        (relation_divergence, lambda t: t.cuda()),
    ):
        leaf = move(student).requires_grad_()
        divergence_GT = function(leaf, move(teacher), piece_BT.to(leaf.device), **choices)
        (gradient,) = torch.autograd.grad(divergence_GT.sum(), leaf)
        across = gradient - leaf * (gradient * leaf).sum(-1, keepdim=True)
        ends.append([divergence_GT.detach().cpu().double(), across.detach().cpu().double()])
    for truth, actual in zip(*ends, strict=True):
        assert (actual - truth).norm() <= 1e-4 * truth.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_losses_over_the_vocabulary_are_those_of_a_cpu(reverse: bool, dtype: torch.dtype) -> None:
    teacher, student = (4 * torch.randn(33, words).to(dtype) for words in (49152, 49153))
    target, ends = torch.randint(49152, (33,)), []
    for device in ("cpu", "cuda"):
        leaf = student.to(device).requires_grad_()
        pair = teacher.to(device), leaf[:, :-1]
        losses = [
            cross_entropy(leaf, target.to(device)),
            divergence(*pair, temperature=2.0, reverse=reverse),
        ]
        (gradient,) = torch.autograd.grad(torch.cat(losses).sum(), leaf)
        ends.append([torch.cat(losses).detach().cpu(), gradient.cpu()])
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=1e-5, atol=1e-5)
    error = (ends[1][1].double() - ends[0][1].double()).norm() / ends[0][1].double().norm()
    assert error <= (2**-7 if dtype == torch.bfloat16 else 1e-5)


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
