"""Runs in a process of its own, with Triton's interpreter where there is no GPU; prints JSON.

Of each operation one entry per case: whether the Triton kernel gives what the reference gives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import bfloat16_in_interpreter
import torch
from torch import Tensor

from wrinklefree.kernels.packed_matmul import reference as packed_matmul
from wrinklefree.kernels.packed_matmul import triton as packed_matmul_triton
from wrinklefree.kernels.quantize_activation import reference as quantize_activation
from wrinklefree.kernels.quantize_activation import triton as quantize_activation_triton
from wrinklefree.kernels.quantize_weights import reference as quantize_weights
from wrinklefree.kernels.quantize_weights import triton as quantize_weights_triton
from wrinklefree.kernels.subln_quantize import reference as subln
from wrinklefree.kernels.subln_quantize import triton as subln_triton
from wrinklefree.kernels.ternary_matmul import reference as ternary_matmul
from wrinklefree.kernels.ternary_matmul import triton as ternary_matmul_triton
from wrinklefree.quant.packing import pack_ternary

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPSILON = 1e-2  # large, so that leaving it out would show
Cases = Iterator[tuple[str, bool]]


def weights() -> Iterator[tuple[str, Tensor]]:
    for rows, columns in [(1, 1), (63, 100), (64, 128), (257, 31)]:
        weight = torch.randn(rows, columns)
        yield f"normal {rows}x{columns}", weight
        yield f"transposed {rows}x{columns}", weight.T
    # absmean 1, so that 0.5, 1.5 and 2.5 are exact ties.
    yield "ties", torch.tensor([[0.5, -0.5, 1.5, -1.5], [2.5, 0.5, 0.5, 0.5]])
    yield "zeros", torch.zeros(63, 100)
    yield "tiny", torch.full((3, 5), 1e-9)
    yield "bfloat16", torch.randn(63, 100).bfloat16()


def activations() -> Iterator[tuple[str, Tensor]]:
    for shape in [(1, 1), (63, 100), (2, 3, 63), (5, 1000)]:
        yield f"normal {shape}", torch.randn(shape)
    # absmax 127, so that the scale is 1 and halves are exact ties.
    halves = torch.arange(-253, 254) / 2
    yield "ties", torch.cat([halves, torch.tensor([127.0])])[None]
    near = torch.cat([torch.nextafter(halves, torch.tensor(sign)) for sign in (-999.0, 999.0)])
    yield "next to ties", torch.cat([near.clamp(-127, 127), torch.tensor([127.0])])[None]
    yield "zeros", torch.zeros(3, 63)
    yield "tiny", torch.full((3, 63), 1e-7)
    yield "bfloat16", torch.randn(63, 100).bfloat16()
    with_nan = torch.randn(3, 63)
    with_nan[1, 7] = torch.nan
    yield "nan", with_nan


def quantize_activation_cases() -> Cases:
    for name, value in activations():
        value = value.to(DEVICE)
        mine = quantize_activation_triton.quantize_activation(value)
        yield name, same_codes(mine, quantize_activation.quantize_activation(value))


def quantize_weights_cases() -> Cases:
    of_all = {name: weight.contiguous().to(DEVICE) for name, weight in weights()}
    of_all["three spans"] = torch.randn(41, 1000, device=DEVICE)
    of_all["nan"] = torch.tensor([1.0, torch.nan, -2.0], device=DEVICE)
    of_all["a row"] = of_all["three spans"][7]
    halves = {"bfloat16": of_all.pop("bfloat16")}
    for scale in ("absmean", "least_squares"):
        for some in (of_all, halves):
            mine = quantize_weights_triton.quantize_weights(list(some.values()), scale)
            truth = quantize_weights.quantize_weights(list(some.values()), scale)
            for name, *both in zip(some, mine, truth, strict=True):
                yield f"{scale} {name}", same_codes(*both)


def subln_quantize_cases() -> Cases:
    """Against float64, within the reference's own error and rounding of the largest term."""
    for dtype, rounding in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7)):
        for shape in [(1, 7), (63, 100), (2, 3, 1537)]:
            value = (3 * torch.randn(shape)).to(DEVICE, dtype)
            gradient = torch.randn(shape, device=DEVICE)
            gain = (1 + 0.3 * torch.randn(shape[-1])).to(DEVICE)
            case = f"{dtype} {shape}"
            codes, scale, inverse = subln_triton.subln_quantize(value, gain, EPSILON)
            code_truth, scale_truth, inverse_truth = subln.subln_quantize(value, gain, EPSILON)
            yield f"inverse {case}", torch.allclose(inverse, inverse_truth, rtol=1e-6, atol=0)
            yield f"scale {case}", torch.allclose(scale, scale_truth, rtol=2 * rounding, atol=0)
            truth = subln.normalized(value.double(), gain.double(), EPSILON)[0]
            allowed = 0.5 / scale + rounding * truth.abs().max()
            yield f"codes {case}", bool(((codes / scale - truth).abs() <= allowed).all())
            away = (codes.int() - code_truth.int()).abs()
            few = 1e-3 if dtype == torch.float32 else 0.5
            yield f"near {case}", bool(away.max() <= 1 and (away > 0).float().mean() <= few)
            mine = subln_triton.subln_gradients(gradient, value, gain, inverse)
            reference = subln.subln_gradients(gradient, value, gain, inverse_truth)
            doubles = gradient.double(), value.double(), gain.double(), inverse_truth.double()
            exact = subln.subln_gradients(*doubles)
            terms = (
                (gradient * gain * inverse).abs().max(),
                (gradient * value * inverse).abs().flatten(0, -2).sum(0).max(),
            )
            for name, *of_both, term in zip(
                ("input", "gain"), mine, reference, exact, terms, strict=True
            ):
                yield f"gradient of {name} {case}", as_near(*of_both, rounding * float(term))
    value, gain = torch.randn(3, 63, device=DEVICE), torch.ones(63, device=DEVICE)
    value[1, 7] = torch.nan
    scale = subln_triton.subln_quantize(value, gain, EPSILON)[1]
    yield "nan", scale.isnan().flatten().tolist() == [False, True, False]
    value, gain = torch.randn(63, 100, device=DEVICE), torch.randn(100, device=DEVICE)
    halves = value.bfloat16(), gain.bfloat16()
    codes, truth = (m.subln_quantize(*halves, EPSILON)[0] for m in (subln_triton, subln))
    yield "a gain in bfloat16", bool((codes.int() - truth.int()).abs().max() <= 2)


def integer_operands(tokens: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.randint(-128, 128, (tokens, inputs), dtype=torch.int8, device=DEVICE)
    weight = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8, device=DEVICE)
    scale = (30 * torch.rand(tokens, 1) + 1).to(DEVICE)
    return codes, scale, weight


def quantizing_cases() -> Cases:
    """Products that make the codes of their activations themselves: the bits of two kernels."""
    for shape in [
        (1, 1, 4),
        (1, 9000, 36),
        (3, 100, 36),
        (17, 1030, 64),
        (40, 63, 31),
        (131, 64, 4),
    ]:
        weight = integer_operands(*shape)[2]
        values = 3 * torch.randn(shape[:2], device=DEVICE)
        values[-1] = 1e-7  # below the least scale
        for value in (values, values.bfloat16()):
            codes = quantize_activation.quantize_activation(value)
            yield from products(
                f"{shape} {value.dtype}",
                len(weight),
                lambda *rest, v=value, c=codes, w=weight: (
                    ternary_matmul_triton.ternary_matmul(v, None, w, *rest),
                    ternary_matmul.ternary_matmul(*c, w, *rest),
                ),
            )
            if shape[0] <= 17 and shape[2] % 4 == 0:
                yield from products(
                    f"packed {shape} {value.dtype}",
                    len(weight),
                    lambda *rest, v=value, c=codes, w=weight: (
                        packed_matmul_triton.packed_matmul(v, None, pack_ternary(w), *rest),
                        packed_matmul.packed_matmul(*c, pack_ternary(w), *rest),
                    ),
                )
    values[7, 5] = torch.nan
    result = ternary_matmul_triton.ternary_matmul(
        values, None, weight, torch.ones((), device=DEVICE)
    )
    yield "nan", result.isnan().all(1).nonzero().flatten().tolist() == [7]
    # absmax 127, so that the scale is 1 and halves are exact ties.
    halves = torch.cat([torch.arange(-253, 254) / 2, torch.tensor([127.0])])[None].to(DEVICE)
    codes = quantize_activation.quantize_activation(halves)
    eye = torch.eye(508, dtype=torch.int8, device=DEVICE)
    one = torch.ones((), device=DEVICE)
    packed = packed_matmul_triton.packed_matmul(halves, None, pack_ternary(eye), one)
    yield "ties", torch.equal(packed, codes[0].float())


def ternary_matmul_cases() -> Cases:
    for shape in [(1, 1, 1), (63, 100, 31), (5, 640, 200), (131, 64, 64), (600, 65, 130)]:
        codes, scale, weight = integer_operands(*shape)
        yield from products(
            f"{shape}",
            len(weight),
            lambda *rest, c=codes, s=scale, w=weight: (
                ternary_matmul_triton.ternary_matmul(c, s, w, *rest),
                ternary_matmul.ternary_matmul(c, s, w, *rest),
            ),
        )


def packed_matmul_cases() -> Cases:
    for shape in [
        (1, 1, 4),
        (1, 4, 4),
        (1, 100, 36),
        (1, 1030, 64),
        (1, 3000, 68),
        (3, 100, 36),
        (33, 257, 132),
    ]:
        codes, scale, weight = integer_operands(*shape)
        yield from products(
            f"{shape}",
            len(weight),
            lambda *rest, c=codes, s=scale, w=weight: (
                packed_matmul_triton.packed_matmul(c, s, pack_ternary(w), *rest),
                packed_matmul.packed_matmul(c, s, pack_ternary(w), *rest),
            ),
        )
    # Sums as large as they get: shifts lose nothing.
    codes = torch.full((1, 9728), -128, dtype=torch.int8, device=DEVICE)
    packed = pack_ternary(torch.ones(8, 9728, dtype=torch.int8, device=DEVICE))
    one = torch.ones(1, 1, device=DEVICE)
    result = packed_matmul_triton.packed_matmul(codes, one, packed, one[0, 0])
    yield "largest sums", bool((result == -128 * 9728).all())
    # A part of a tensor, which does not begin with a word.
    codes, scale, weight = integer_operands(1, 104, 8)
    packed = torch.cat([codes[0, :3].to(torch.uint8), pack_ternary(weight).flatten()])[3:]
    operands = codes[:, 1:101], scale, packed.view(2, 104)[:, :100], one[0, 0]
    actual = packed_matmul_triton.packed_matmul(*operands)
    yield "a part", torch.equal(actual, packed_matmul.packed_matmul(*operands))


def products(
    name: str, outputs: int, both: Callable[[Tensor, torch.dtype], tuple[Tensor, Tensor]]
) -> Cases:
    for per in ("tensor", "output"):
        weight_scale = torch.rand((outputs, 1) if per == "output" else ()).to(DEVICE) + 0.1
        for dtype in (torch.float32, torch.bfloat16):
            mine, truth = both(weight_scale, dtype)
            yield f"{name} scale per {per}, {dtype}", same_bits(mine, truth)


def same_bits(mine: Tensor, truth: Tensor) -> bool:
    return torch.equal(mine, truth) and mine.dtype == truth.dtype


def same_codes(mine: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> bool:
    (codes, scale), (codes_triton, scale_triton) = truth, mine
    finite = torch.isfinite(scale).expand_as(codes)
    return (
        torch.equal(codes[finite], codes_triton[finite])
        and torch.equal(scale.nan_to_num(-1.0), scale_triton.nan_to_num(-1.0))
        and codes_triton.dtype == torch.int8
        and codes_triton.shape == codes.shape
        and scale_triton.shape == scale.shape
    )


def as_near(actual: Tensor, reference: Tensor, exact: Tensor, rounding: float) -> bool:
    """Whether ``actual`` is about as near to the truth as the reference of the same dtype."""
    error, allowed = ((value.double() - exact).abs().max() for value in (actual, reference))
    return bool(error <= allowed + rounding) and actual.dtype == reference.dtype


CASES: dict[str, Callable[[], Cases]] = {
    "quantize_activation": quantize_activation_cases,
    "quantize_weights": quantize_weights_cases,
    "subln_quantize": subln_quantize_cases,
    "ternary_matmul": ternary_matmul_cases,
    "packed_matmul": packed_matmul_cases,
    "quantizing": quantizing_cases,
}

if __name__ == "__main__":
    # Every fresh allocation is filled with NaN or the largest integer.
    bfloat16_in_interpreter.mend()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(torch.seed() % 2**31)
    print(json.dumps({name: dict(cases()) for name, cases in CASES.items()}))
