"""Where the decoder layers of a model are."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError


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
