"""Queries, keys and values of chosen layers, read while a model runs.

Shapes: B rows, T tokens of a row, H attention heads, K key/value heads, D head size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wrinklefree.errors import UserError
from wrinklefree.models.depths import skipping_layers
from wrinklefree.models.layers import decoder_layers

CAPTURING_ATTENTION = "capturing"
"""What transformers calls the attention of a layer that is being read."""
_ATTEND: dict[nn.Module, Callable[..., Any]] = {}
"""The attention of each layer that is being read."""


def _attend(module: nn.Module, *args: Any, **rest: Any) -> Any:
    return _ATTEND[module](module, *args, **rest)


AttentionInterface.register(CAPTURING_ATTENTION, _attend)


@dataclass(frozen=True)
class Projections:
    """What one layer's attention is computed from; gradients flow through it."""

    query_BHTD: Tensor
    key_BKTD: Tensor
    value_BKTD: Tensor

    def rows(self, start: int, stop: int, *, batch: int) -> Projections:
        """Tokens ``start`` to ``stop`` of the first ``batch`` rows."""
        return Projections(
            self.query_BHTD[:batch, :, start:stop],
            self.key_BKTD[:batch, :, start:stop],
            self.value_BKTD[:batch, :, start:stop],
        )


def attention_of(model: PreTrainedModel, layer: int) -> nn.Module:
    """The attention of all tokens in a decoder layer, or a UserError where it has none."""
    if layer in skipping_layers(model):
        raise UserError(
            f"relations are between all tokens, and layer {layer} leaves some out"
            " (subln.mixture_of_depths); choose others in relations.layer_fractions"
        )
    attention = getattr(decoder_layers(model)[layer], "self_attn", None)
    if attention is None:
        raise UserError(
            f"relations are between queries, keys and values, and layer {layer} of"
            f" {model.config.model_type} has a state in place of attention; choose others"
            " in relations.layer_fractions, or set weights.relations to 0"
        )
    return attention


@contextmanager
def captured_projections(
    model: PreTrainedModel, layers: Collection[int]
) -> Iterator[dict[int, Projections]]:
    """Queries, keys and values of some layers, while the model runs inside the context.

    By layer, and there after the run. These layers alone are given another attention function for
    as long; all others keep theirs, so that what is compiled of them stays valid. A layer that runs
    again after the context, as activation checkpointing makes it, is not read again.
    """
    found: dict[int, Projections] = {}
    with ExitStack() as stack:
        for layer in set(layers):

            def keep(*projections: Tensor, layer: int = layer) -> None:
                found[layer] = Projections(*projections)

            stack.enter_context(_attending(attention_of(model, layer), keep))
        yield found


@contextmanager
def _attending(attention: nn.Module, keep: Callable[[Tensor, Tensor, Tensor], None]):
    """Give queries, keys and values of ``attention`` to ``keep`` whenever it runs."""
    own: Any = attention.config
    name = own._attn_implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        raise UserError(
            f"relations can't be read from attention implementation {name}, which is no fused one;"
            " load the model with attn_implementation sdpa"
        )
    outer = _ATTEND.get(attention)
    inner: Callable[..., Any] = outer or ALL_ATTENTION_FUNCTIONS[name]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **rest: Any):
        keep(query, key, value)
        return inner(module, query, key, value, *args, **rest)

    _ATTEND[attention] = attend
    attention.config = copy.copy(own)
    attention.config._attn_implementation = CAPTURING_ATTENTION
    try:
        yield
    finally:
        attention.config = own
        if outer:
            _ATTEND[attention] = outer
        else:
            del _ATTEND[attention]
