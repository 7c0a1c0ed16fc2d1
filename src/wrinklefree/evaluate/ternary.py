"""What became of the weights of every ternary layer: shares of the codes and the scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wrinklefree.errors import UserError
from wrinklefree.quant.bitlinear import TernaryLayer
from wrinklefree.quant.settings import Scale

HISTOGRAM_EDGES = tuple(index / 8 for index in range(-24, 25))
"""Edges of the bins of :attr:`LayerTernary.histogram`: latent weight / scale, from -3 to 3."""
_DECODER_LAYER = re.compile(r"\blayers\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class LayerTernary:
    """The codes of one ternary linear layer."""

    name: str
    """Name of the module, as in the model's state dict."""
    weights: int
    minus: float
    """Share of the code -1; with ``zero`` and ``plus`` it sums to 1."""
    zero: float
    plus: float
    scale: float
    """What a code of 1 stands for, as a mean over the weights where there are several scales."""
    histogram: tuple[int, ...] = ()
    """Latent weights between :data:`HISTOGRAM_EDGES`; those beyond are in the outermost bins."""
    fit: Scale = "absmean"
    """How the scale follows from the weights."""

    @property
    def depth(self) -> int:
        """Index of the decoder layer; 0 for a module outside of one."""
        found = _DECODER_LAYER.search(self.name)
        return int(found[1]) if found else 0

    @property
    def kind(self) -> str:
        """Which linear of its decoder layer, such as ``q_proj``."""
        found = _DECODER_LAYER.search(self.name)
        path = found[2] if found else self.name
        # Under SubLN a projection is a wrapper that holds the norm and the linear.
        return path.removesuffix(".linear").rpartition(".")[2]


@torch.no_grad()
def ternary_layers(model: nn.Module, name: str) -> list[LayerTernary]:
    """Statistics of every ``TernaryLayer`` of ``model``, in the order of its modules.

    Raises
    ------
    UserError : a weight is not finite; ``name`` says of which model.
    """
    layers = []
    for path, module in model.named_modules():
        if not isinstance(module, TernaryLayer):
            continue
        if not torch.isfinite(module.weight).all():
            raise UserError(
                f"model {name}, layer {path}: weights are not finite and have no ternary codes;"
                " see the gradient norms in the stage's history.jsonl and rerun it"
            )
        codes, scales = module.ternary_codes()
        minus, zero, plus = ((codes == code).sum().item() for code in (-1, 0, 1))
        count, scale = codes.numel(), scales.double().mean().item()
        shares = (minus / count, zero / count, plus / count)
        bins = _histogram(module, scales)
        layers.append(LayerTernary(path, count, *shares, scale, bins, module.scale))
    return layers


def _histogram(module: TernaryLayer, scales: Tensor) -> tuple[int, ...]:
    """As in :class:`LayerTernary`."""
    ratios = module.weight.float().flatten(0, -2) / scales
    inside = ratios.clamp(HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    low, high, bins = HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1], len(HISTOGRAM_EDGES) - 1
    return tuple(int(n) for n in torch.histc(inside, bins, low, high).tolist())


def pooled(layers: Sequence[LayerTernary]) -> dict[str, float | int]:
    """Number of ternary weights of a model and shares of their codes over all layers."""
    total = sum(layer.weights for layer in layers)

    def share(of: str) -> float:
        return sum(layer.weights * getattr(layer, of) for layer in layers) / total

    shares: dict[str, float | int] = {name: share(name) for name in ("minus", "zero", "plus")}
    return shares | {"layers": len(layers), "weights": total}


def ternary_csv(models: dict[str, list[LayerTernary]]) -> str:
    """A line per layer: model, layer, weights, minus, zero, plus (shares), scale."""
    lines = ["model,layer,weights,minus,zero,plus,scale"]
    for model, layers in models.items():
        lines.extend(
            f"{model},{layer.name},{layer.weights},{layer.minus:.6f},{layer.zero:.6f},"
            f"{layer.plus:.6f},{layer.scale:.8e}"
            for layer in layers
        )
    return "\n".join(lines) + "\n"
