"""BitLinear, forward and backward, against nn.Linear and the closed formula written with detach.

Shapes: M tokens, N input features, O output features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from _timing import default_settings, print_header, print_table, require_close, time_in_turns
from torch import Tensor, nn

from wrinklefree.models.dense import build_scratch
from wrinklefree.models.surgery import decoder_layers
from wrinklefree.quant.bitlinear import BitLinear

STRENGTHS = (1.0, 0.5, 0.0)


Layer = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """One layer, its input and the gradient of its output."""

    linear: nn.Linear
    x_MN: Tensor
    gradient_MO: Tensor


def bitlinear(case: Case, strength: float) -> Layer:
    layer = BitLinear.from_linear(case.linear)
    layer.quantization_lambda = strength
    return layer


def formula(case: Case, strength: float) -> Layer:
    """``F.linear(x + λ (Qa(x) - x).detach(), W + λ (Qw(W) - W).detach())`` in plain torch."""
    weight_ON = case.linear.weight

    def forward(x_MN: Tensor) -> Tensor:
        scale_M1 = 127 / x_MN.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        quantized_MN = (x_MN * scale_M1).round().clamp(-128, 127) / scale_M1
        absmean = weight_ON.abs().mean().clamp(min=1e-5)
        ternary_ON = (weight_ON / absmean).round().clamp(-1, 1) * absmean
        seen_MN = x_MN + strength * (quantized_MN - x_MN).detach()
        return F.linear(seen_MN, weight_ON + strength * (ternary_ON - weight_ON).detach())

    return forward


VARIANTS: dict[str, Callable[[Case, float], Layer]] = {
    "nn.Linear": lambda case, strength: case.linear,
    "formula": formula,
    "BitLinear": bitlinear,
}


def run(case: Case, layer: Layer) -> tuple[Tensor, ...]:
    """Output, gradient of the input, gradient of the weight."""
    output_MO, inputs = layer(case.x_MN), (case.x_MN, case.linear.weight)
    return output_MO, *torch.autograd.grad(output_MO, inputs, case.gradient_MO)


def check(case: Case, strength: float) -> None:
    x_MN = case.x_MN.detach().double().requires_grad_()
    double = Case(copy.deepcopy(case.linear).double(), x_MN, case.gradient_MO.double())
    truth = run(double, formula(double, strength))
    # In float32 a value near a rounding boundary may take the neighbouring code.
    for mine, tolerance in ((double, 1e-9), (case, 1e-2)):
        for actual, expected in zip(run(mine, bitlinear(mine, strength)), truth, strict=True):
            what = f"BitLinear at λ={strength:g} in {mine.x_MN.dtype}"
            require_close(actual, expected, tolerance, what)


def timed(cases: list[Case], variant: str, strength: float) -> Callable[[], object]:
    pairs = [(case, VARIANTS[variant](case, strength)) for case in cases]
    return lambda: [run(case, layer) for case, layer in pairs]


def main() -> None:
    settings, scratch = default_settings()
    torch.manual_seed(settings.seed)
    length = settings.mixture.sequence_length
    model = build_scratch(scratch.model, 8, length, 0, settings.seed)
    linears = [m for m in decoder_layers(model)[0].modules() if isinstance(m, nn.Linear)]
    tokens = settings.stage2.batch_size * length
    layer_cases: list[Case] = []
    for linear in linears:
        x_MN = torch.randn(tokens, linear.in_features, requires_grad=True)
        layer_cases.append(Case(linear, x_MN, torch.randn(tokens, linear.out_features)))
    groups = {f"{c.linear.in_features} -> {c.linear.out_features}": [c] for c in layer_cases}
    groups[f"all {len(linears)} of a decoder layer"] = layer_cases
    print_header(f"BitLinear, forward and backward, {tokens} tokens, float32")
    for strength in STRENGTHS:
        for case in layer_cases:
            check(case, strength)
    for title, cases in groups.items():
        for strength in STRENGTHS:
            calls = {name: timed(cases, name, strength) for name in VARIANTS}
            seconds = time_in_turns(calls)
            print_table(f"{title}, λ = {strength:g}", seconds, ["nn.Linear", "formula"])


if __name__ == "__main__":
    main()
