"""The ternary linear layer of BitNet b1.58 (arXiv 2402.17764), with a dial for its strength.

Shapes: M tokens (any leading dimensions), N input features, O output features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrinklefree.quant.ternary import quantize_activation, quantize_weight


class _StraightThrough(torch.autograd.Function):
    """``x + strength * (quantize(x) - x)``, whose gradient is passed on as it is.

    Against the same formula written with ``detach`` it saves two temporaries, and at strength 1 the
    result is ``quantize(x)`` to the bit: what an exported model computes.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, quantize: Callable[[Tensor], Tensor], strength: float
    ) -> Tensor:
        quantized = quantize(value)
        return quantized if strength == 1.0 else torch.lerp(value, quantized, strength)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


class BitLinear(nn.Module):
    """A linear layer that sees ternary weights and int8 activations.

    ``quantization_lambda`` is the strength: 0 is a plain linear layer, 1 is fully quantized. It is
    an attribute and neither parameter nor buffer, so it is in no state dict. Whatever it is, the
    gradients are those of a linear layer at the (partly) quantized values.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        """Weights as in ``nn.Linear``."""
        super().__init__()
        self._adopt(nn.Linear(in_features, out_features, bias))

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> BitLinear:
        """A layer that owns the very parameters of ``linear``."""
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._adopt(linear)
        layer.training = linear.training
        return layer

    def _adopt(self, linear: nn.Linear) -> None:
        self.weight = cast(nn.Parameter, linear.weight)
        self.register_parameter("bias", cast("nn.Parameter | None", linear.bias))
        self.out_features, self.in_features = linear.weight.shape
        self.quantization_lambda = 1.0

    def forward(self, activation_MN: Tensor) -> Tensor:
        """float [..., N] to float [..., O]."""
        strength = self.quantization_lambda
        weight_ON: Tensor = self.weight
        if strength != 0.0:
            activation_MN = _straight_through(activation_MN, quantize_activation, strength)
            weight_ON = _straight_through(weight_ON, quantize_weight, strength)
        return F.linear(activation_MN, weight_ON, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as ``nn.Linear`` shows them, and the strength."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" bias={self.bias is not None}, quantization_lambda={self.quantization_lambda}"
        )


def set_quantization_lambda(model: nn.Module, value: float) -> None:
    """Give every ``BitLinear`` in ``model`` the strength ``value``, in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"quantization lambda {value}: expected 0 to 1")
    for layer in _bitlinear_layers(model):
        layer.quantization_lambda = float(value)


@contextmanager
def quantization_lambda_of(model: nn.Module, value: float) -> Iterator[None]:
    """Inside the block every ``BitLinear`` has the strength ``value``; after it, its own again."""
    before = {layer: layer.quantization_lambda for layer in _bitlinear_layers(model)}
    set_quantization_lambda(model, value)
    try:
        yield
    finally:
        for layer, strength in before.items():
            layer.quantization_lambda = strength


def _bitlinear_layers(model: nn.Module) -> list[BitLinear]:
    return [module for module in model.modules() if isinstance(module, BitLinear)]


def _straight_through(
    value: Tensor, quantize: Callable[[Tensor], Tensor], strength: float
) -> Tensor:
    quantized: Any = _StraightThrough.apply(value, quantize, strength)
    return quantized
