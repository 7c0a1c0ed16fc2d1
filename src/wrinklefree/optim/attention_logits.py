"""The largest attention logit of each head, seen without replacing the attention.

transformers looks up the attention function by the name in the model's configuration. The recorder
registers one that measures and then calls ``sdpa``, so outputs and gradients stay bit-identical.

Shapes: L layers, B rows, H query heads, K key-value heads, G = H / K, T queries, S keys, D head
size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wrinklefree.models.attention import BY_BLOCKS, FLEX
from wrinklefree.models.layers import decoder_layers

RECORDING_ATTENTION = "sdpa_recording"
_LARGEST_BLOCK = 2**22
"""Logits held at once: 16 MiB in float32."""

_maxima_H: WeakKeyDictionary[nn.Module, Tensor | None] = WeakKeyDictionary()


class AttentionLogitRecorder:
    """Records ``max(q·k * scaling)`` over allowed pairs, per layer and head.

    Records every forward pass that is differentiated (also the second one of gradient
    checkpointing), and none under ``torch.no_grad``: evaluations don't count. Values that are not
    finite are left out: such a pass has no usable gradient either. Costs one more query-key product
    per layer and at most 16 MiB (one row of queries, where that is larger).

    Parameters
    ----------
    model : with ``sdpa`` attention, or what a training put in its place; its configuration in
        memory (not its saved form) is changed.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        current = model.config._attn_implementation
        known = ("sdpa", BY_BLOCKS, FLEX, RECORDING_ATTENTION)
        assert current in known, f"attention is {current}, not sdpa"
        AttentionInterface.register(RECORDING_ATTENTION, _record_and_attend)
        AttentionMaskInterface.register(RECORDING_ATTENTION, sdpa_mask)
        model.set_attn_implementation(RECORDING_ATTENTION)
        layers = (dict(layer.named_children()) for layer in decoder_layers(model))
        self.attentions = [parts["self_attn"] for parts in layers if "self_attn" in parts]
        self.reset()

    def reset(self) -> None:
        """Forget what was recorded."""
        for attention in self.attentions:
            _maxima_H[attention] = None

    def combine(self, maximum: Callable[[Tensor], Tensor]) -> None:
        """Replace what was recorded by ``maximum`` of it, over all processes of a training."""
        combined_LH = maximum(torch.stack(self.maxima_H()))
        for attention, maximum_H in zip(self.attentions, combined_LH, strict=True):
            _maxima_H[attention] = maximum_H

    def maxima_H(self) -> list[Tensor]:
        """Per layer the largest logits since the last reset, float32 [H].

        Raises
        ------
        RuntimeError : a layer has recorded nothing.
        """
        maxima = [_maxima_H[attention] for attention in self.attentions]
        if any(maximum_H is None for maximum_H in maxima):
            raise RuntimeError(
                "no attention logits were recorded since the last step: the model was not called"
                f" with gradients, or its attention is no longer {RECORDING_ATTENTION}"
            )
        return [maximum_H for maximum_H in maxima if maximum_H is not None]


@torch.no_grad()
def max_attention_logits(
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    *,
    scaling: float,
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """Largest ``q·k * scaling`` of each head over the pairs that may attend, float32 [H].

    Parameters
    ----------
    mask : bool, broadcastable to [B, H, T, S], True where attention is allowed; None: all pairs,
        or with ``causal`` those with key <= query.
    """
    rows, heads, queries, size = query_BHTD.shape
    key_heads, keys = key_BKSD.shape[1:3]
    query_BKGTD = query_BHTD.float().unflatten(1, (key_heads, heads // key_heads))
    key_BKDS = key_BKSD.float().mT
    maximum_H = query_BHTD.new_full((heads,), -torch.inf, dtype=torch.float32)
    block = max(1, _LARGEST_BLOCK // (rows * heads * keys))
    for start in range(0, queries, block):
        stop = min(start + block, queries)
        block_BKND = query_BKGTD[..., start:stop, :].reshape(rows, key_heads, -1, size)
        with torch.autocast(query_BHTD.device.type, enabled=False):
            logits_BHTS = (block_BKND @ key_BKDS).view(rows, heads, stop - start, keys)
        allowed = _allowed(mask, causal, start, stop, keys, query_BHTD.device)
        if allowed is not None:
            # Broadcast over heads, adding is ten times faster on a CPU than masked_fill_.
            logits_BHTS += torch.zeros_like(allowed, dtype=torch.float32).masked_fill_(
                ~allowed, -torch.inf
            )
        maximum_H = torch.maximum(maximum_H, logits_BHTS.amax(dim=(0, 2, 3)))
    return maximum_H * scaling


def _allowed(
    mask: Tensor | None, causal: bool, start: int, stop: int, keys: int, device: torch.device
) -> Tensor | None:
    """The part of the mask for queries from ``start`` to ``stop``."""
    if mask is not None:
        assert mask.dtype == torch.bool, "attention masks are boolean"
        return mask[:, :, start:stop] if mask.shape[2] > 1 else mask
    if not causal:
        return None
    query = torch.arange(start, stop, device=device)
    return query[:, None] >= torch.arange(keys, device=device)


@torch.compiler.disable
def _record_and_attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKSD: Tensor,
    value_BKSD: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function that the recorder registers; arguments as those of ``sdpa``."""
    if torch.is_grad_enabled() and module in _maxima_H:
        scaling = kwargs.get("scaling")
        causal = kwargs.get("is_causal")
        maximum_H = max_attention_logits(
            query_BHTD,
            key_BKSD,
            scaling=query_BHTD.shape[-1] ** -0.5 if scaling is None else scaling,
            mask=attention_mask,
            causal=getattr(module, "is_causal", True) if causal is None else causal,
        )
        recorded_H = _maxima_H[module]
        if recorded_H is None:
            recorded_H = torch.full_like(maximum_H, -torch.inf)
        usable_H = torch.where(maximum_H.isfinite(), maximum_H, -torch.inf)
        _maxima_H[module] = torch.maximum(recorded_H, usable_H)
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return attend(module, query_BHTD, key_BKSD, value_BKSD, attention_mask, **kwargs)
