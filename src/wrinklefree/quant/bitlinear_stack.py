"""Ternary linear layers of one shape, of which every token takes some: those of experts.

Shapes: E matrices of a stack, P rows in the order of the matrices that they are for, N input
features, O output features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wrinklefree.kernels.ternary_linear import ternary_linear
from wrinklefree.quant.bitlinear import ABSMEAN, TernaryLayer, product_dtype
from wrinklefree.quant.codes import Codes, activation_codes
from wrinklefree.quant.routing import Routing
from wrinklefree.quant.scales import count_vectors
from wrinklefree.quant.settings import QuantizerSettings


class LinearStack(nn.Module):
    """E linear layers without bias, each for a part of the rows.

    Parameters
    ----------
    weight : [E, O, N], which the layer owns.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, activation_PN: Tensor, routing: Routing) -> Tensor:
        """float [P, O], each row by the matrix that it is for."""
        return _linear_by_part(activation_PN, self.weight, routing.sizes)


class BitLinearStack(TernaryLayer):
    """A :class:`LinearStack` with ternary weights and int8 activations.

    Each matrix has the scales that a ``BitLinear`` of it alone would have, and computes the same.

    Parameters
    ----------
    stack : whose very parameter it is to own.
    fused : how many matrices stand one under the other in each of the stack.

    Raises
    ------
    ValueError : the weights have no whole number of groups.
    """

    def __init__(
        self, stack: LinearStack, quantizer: QuantizerSettings = ABSMEAN, fused: int = 1
    ) -> None:
        super().__init__()
        self.weight = stack.weight
        experts, outputs, inputs = stack.weight.shape
        vectors = count_vectors(outputs // fused, inputs, quantizer)
        self._quantize_by(quantizer, experts * fused * vectors)
        self.training = stack.training

    def forward(self, activation_PN: Tensor, routing: Routing) -> Tensor:
        """float [P, O], each row by the matrix that it is for."""
        sizes = routing.sizes
        if not self.is_exact:
            seen_PN = self._seen_activation(activation_PN)
            return _linear_by_part(seen_PN, self._seen_weight(), sizes)
        dtype, codes = product_dtype(activation_PN), activation_codes(activation_PN)
        parts = zip(
            activation_PN.split(sizes),
            self.weight.unbind(),
            zip(*(tensor.split(sizes) for tensor in codes), strict=True),
            zip(*self._codes_by_matrix(), strict=True),
            strict=True,
        )
        products = [ternary_linear(*part, dtype=dtype) for part in parts if len(part[0])]
        return torch.cat(products)

    def _codes_by_matrix(self) -> Codes:
        """Codes, [E, O, N], and scales, [E, O, 1]."""
        codes, scale = self._weight_codes()
        by_matrix = (len(self.weight), -1)
        return codes.unflatten(0, by_matrix), scale.expand(len(codes), 1).unflatten(0, by_matrix)

    def extra_repr(self) -> str:
        """Sizes, the quantizer and the strength."""
        experts, outputs, inputs = self.weight.shape
        return (
            f"matrices={experts}, in_features={inputs}, out_features={outputs},"
            f" scale={self.scale}, granularity={self.granularity},"
            f" quantization_lambda={self.quantization_lambda}"
        )


def _linear_by_part(activation_PN: Tensor, weight_EON: Tensor, sizes: list[int]) -> Tensor:
    # Unbound: the gradient of an indexed matrix would be as large as the stack, for each of them.
    parts = zip(activation_PN.split(sizes), weight_EON.unbind(), strict=True)
    return torch.cat([F.linear(part, weight_ON) for part, weight_ON in parts if len(part)])
