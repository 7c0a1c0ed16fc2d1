"""Which of several layers of one shape each token takes.

Shapes: M tokens, K layers that a token takes, E layers, P = M K pairs of them, in the order of the
layers and of the tokens in each.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


@dataclass(frozen=True)
class Routing:
    """Pairs of tokens and layers."""

    token_P: Tensor
    """int64: the number of the token."""
    layer_P: Tensor
    """int64, ascending: the number of the layer."""
    sizes: list[int]
    """How many pairs each of the E layers has."""
    place_MK: Tensor
    """int64: where the pairs of each token are."""

    @classmethod
    def of(cls, layer_MK: Tensor, layers: int) -> Routing:
        """Of the layers that each token takes, int64; ``layers``: E."""
        layer_P = layer_MK.flatten()
        order_P = layer_P.argsort(stable=True)
        if isinstance(layer_P, FakeTensor):  # which has no contents: all layers have their share
            part, rest = divmod(len(layer_P), layers)
            sizes = [part + (layer < rest) for layer in range(layers)]
        else:
            sizes = layer_P.bincount(minlength=layers).tolist()
        place_MK = order_P.argsort().view_as(layer_MK)
        return cls(order_P // layer_MK.shape[1], layer_P[order_P], sizes, place_MK)
