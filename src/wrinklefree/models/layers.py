"""Where the decoder layers of a model are."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError


def layer_at(model: PreTrainedModel, fraction: float) -> int:
    """Index of the layer at a fraction of the depth: 0.8 of 28 layers is 22; 1 is the last one."""
    layers = model.config.num_hidden_layers
    return min(round(fraction * layers), layers - 1)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a causal language model, in order.

    Raises
    ------
    UserError : the model has no list of ``layers``.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise UserError(f"{type(model).__name__} has no list of decoder layers named 'layers'")
    return list(layers)
