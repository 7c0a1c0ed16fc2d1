"""BitLinear, forward and backward, against nn.Linear and the closed formula written with detach.

Shapes: M tokens, N input features, O output features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _timing import default_settings, print_header, print_table, require_close, time_in_turns
from torch import Tensor, nn

from wrinklefree.models.base import build_scratch
from wrinklefree.models.surgery import decoder_layers
from wrinklefree.quant.bitlinear import BitLinear

REPEATS = 9
STRENGTHS = (1.0, 0.5, 0.0)


class ClosedFormula(nn.Module):
    """``F.linear(x + λ (Qa(x) - x).detach(), W + λ (Qw(W) - W).detach())`` in plain torch."""

    def __init__(self, linear: nn.Linear, strength: float) -> None:
        super().__init__()
        self.weight, self.strength = linear.weight, strength

    def forward(self, x_MN: Tensor) -> Tensor:
        scale_M1 = 127 / x_MN.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        quantized_MN = (x_MN * scale_M1).round().clamp(-128, 127) / scale_M1
        absmean = self.weight.abs().mean().clamp(min=1e-5)
        ternary_ON = (self.weight / absmean).round().clamp(-1, 1) * absmean
        return F.linear(
            x_MN + self.strength * (quantized_MN - x_MN).detach(),
            self.weight + self.strength * (ternary_ON - self.weight).detach(),
        )


class Case:
    """One layer with a fixed input and a fixed gradient of its output."""

    def __init__(self, linear: nn.Linear, tokens: int) -> None:
        self.linear = linear
        self.x_MN = torch.randn(tokens, linear.in_features, requires_grad=True)
        self.gradient_MO = torch.randn(tokens, linear.out_features)

    def bitlinear(self, strength: float) -> BitLinear:
        layer = BitLinear.from_linear(self.linear)
        layer.quantization_lambda = strength
        return layer

    def run(self, layer: nn.Module, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Output, gradient of the input and of the weight."""
        layer, x_MN = (layer, self.x_MN) if dtype == torch.float32 else self._cast(layer, dtype)
        output_MO = layer(x_MN)
        inputs = [x_MN, *layer.parameters()]
        return output_MO, *torch.autograd.grad(output_MO, inputs, self.gradient_MO.to(dtype))

    def _cast(self, layer: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
        return copy.deepcopy(layer).to(dtype), self.x_MN.detach().to(dtype).requires_grad_()

    def check(self, strength: float) -> None:
        # In float32 a value near a rounding boundary may take the neighbouring code.
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-2)):
            expected = self.run(ClosedFormula(self.linear, strength), torch.float64)
            for mine, truth in zip(
                self.run(self.bitlinear(strength), dtype), expected, strict=True
            ):
                require_close(mine, truth, tolerance, f"BitLinear at λ={strength:g} in {dtype}")


def timed(cases: list[Case], layer_of: Callable[[Case], nn.Module]) -> Callable[[], object]:
    layers = [layer_of(case) for case in cases]
    return lambda: [case.run(layer) for case, layer in zip(cases, layers, strict=True)]


def main() -> None:
    settings, scratch = default_settings()
    torch.manual_seed(settings.seed)
    length = settings.mixture.sequence_length
    model = build_scratch(scratch.model, 8, length, 0, settings.seed)
    linears = [m for m in decoder_layers(model)[0].modules() if isinstance(m, nn.Linear)]
    tokens = settings.stage2.batch_size * length
    layer_cases = [Case(linear, tokens) for linear in linears]
    groups = {f"{c.linear.in_features} -> {c.linear.out_features}": [c] for c in layer_cases}
    groups[f"all {len(linears)} of a decoder layer"] = layer_cases
    print_header(f"BitLinear, forward and backward, {tokens} tokens, float32")
    for strength in STRENGTHS:
        for case in layer_cases:
            case.check(strength)
    for title, cases in groups.items():
        for strength in STRENGTHS:
            calls = {
                "nn.Linear": timed(cases, lambda case: case.linear),
                "formula": timed(cases, lambda case, s=strength: ClosedFormula(case.linear, s)),
                "BitLinear": timed(cases, lambda case, s=strength: case.bitlinear(s)),
            }
            seconds = time_in_turns(calls, REPEATS)
            print_table(f"{title}, λ = {strength:g}", seconds, ["nn.Linear", "formula"])


if __name__ == "__main__":
    main()
