"""What an update does to ternary codes, and how near latent weights are to another code.

A code changes where its latent weight passes half of the scale: weights that are far from there
train for nothing, and codes that change again and again are noise.

Shapes: O output features, N input features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wrinklefree.quant.bitlinear import TernaryLayer, ternary_layers_by_name
from wrinklefree.stability.activations import layer_metrics


@dataclass(frozen=True)
class LayerCodes:
    """The codes of a layer after an update."""

    flipped: float
    """Share of the codes that the update changed."""
    flipped_since: float
    """Share of the codes that are no longer what they were at the start."""
    zero: float
    """Share of the codes that are 0."""
    dead_rows: float
    """Share of the outputs whose codes are all 0."""
    threshold_distance: float
    """Distance of a latent weight from where its code changes, in scales; the mean over weights."""
    scale: float
    """What a code of 1 stands for, as a mean over the weights."""


class CodeTelemetry:
    """Compares the codes of every ternary layer of ``model`` with those that it has now.

    Parameters
    ----------
    start : codes by layer that are compared with as well, from :func:`codes_of`; those of now if
        there are none.
    """

    def __init__(self, model: nn.Module, start: dict[str, Tensor] | None = None) -> None:
        self._layers, self._before = ternary_layers_by_name(model), codes_of(model)
        self._start = start or self._before

    @torch.no_grad()
    def layers(self) -> dict[str, LayerCodes]:
        """By the layer's name in the model."""
        return {
            name: _compared(layer, self._before[name], self._start[name])
            for name, layer in self._layers.items()
        }

    def metrics(self) -> dict[str, float]:
        """Numbers to log, none without layers: for each field of :class:`LayerCodes` its mean over
        layers (``ternary/flipped``) and that of each (``ternary/flipped/<layer>``).
        """
        return layer_metrics("ternary", self.layers())


def codes_of(model: nn.Module) -> dict[str, Tensor]:
    """Of every ternary layer by name, int8 [O, N]."""
    return {name: layer.ternary_codes()[0] for name, layer in ternary_layers_by_name(model).items()}


def _compared(layer: TernaryLayer, before_ON: Tensor, start_ON: Tensor) -> LayerCodes:
    codes_ON, scale = layer.ternary_codes()
    distance_ON = (layer.weight.flatten(0, -2).abs() / scale - 0.5).abs()
    zero_ON = codes_ON == 0
    shares = torch.stack(
        [
            (codes_ON != before_ON).double().mean(),
            (codes_ON != start_ON).double().mean(),
            zero_ON.double().mean(),
            zero_ON.all(1).double().mean(),
            distance_ON.double().mean(),
            scale.double().expand(codes_ON.shape).mean(),
        ]
    )
    return LayerCodes(*shares.tolist())
