"""Where the decoder layers of a model are, and what their configuration says of them."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from wrinklefree.errors import UserError

STATES = {"linear_attention", "hybrid", "conv"}
"""What transformers calls layers with a state in place of attention or beside it."""


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


def head_size(config: PreTrainedConfig) -> int:
    """Features of an attention head, which not every configuration says (Qwen2's doesn't)."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def hidden_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states in what a decoder layer returns, [B, T, D]: some return more."""
    return output[0] if isinstance(output, tuple) else output


def has_both_kinds(config: PreTrainedConfig) -> bool:
    """Whether some decoder layers have experts and others have none, by their number."""
    return bool(
        getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) > 1
    )


def has_states(config: PreTrainedConfig) -> bool:
    """Whether some decoder layers read a row from left to right into a state."""
    return not STATES.isdisjoint(getattr(config, "layer_types", None) or ())
