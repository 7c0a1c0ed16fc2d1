"""Attention on a processor without a tensor of all pairs: a block of queries after the other.

torch's attention for processors reads who may see whom as floats, one for each pair, and keeps them
for its backward pass. Here they are made for a block of queries and the keys that these may see, in
each pass anew. Keys beyond, such as those behind a causal block, cost nothing.

Shapes: B rows, H heads, T tokens of a row, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wrinklefree.models.attention import BY_BLOCKS, AttentionRule
from wrinklefree.quant.bitlinear import product_dtype

# What torch's own attention for processors calls in its two passes.
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_by_blocks(model: PreTrainedModel) -> None:
    """Let ``model`` attend so; its configuration in memory (not its saved form) is changed."""
    AttentionInterface.register(BY_BLOCKS, _attend)
    AttentionMaskInterface.register(BY_BLOCKS, sdpa_mask)
    model.set_attn_implementation(BY_BLOCKS)


def _attend(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BKTD: Tensor,
    value_BKTD: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers; a mask that is a tensor, or none, goes to ``sdpa``."""
    if not isinstance(attention_mask, BlockMask):
        attend, inputs = ALL_ATTENTION_FUNCTIONS["sdpa"], (query_BHTD, key_BKTD, value_BKTD)
        return attend(module, *inputs, attention_mask, scaling=scaling, **kwargs)
    groups, dtype = query_BHTD.shape[1] // key_BKTD.shape[1], product_dtype(query_BHTD)
    heads = (query_BHTD, repeat_kv(key_BKTD, groups), repeat_kv(value_BKTD, groups))
    output: Any = _ByBlocks.apply(
        *(part.to(dtype) for part in heads), attention_mask.mask_mod, scaling
    )
    return output.transpose(1, 2).contiguous(), None


class _ByBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule, scale: float
    ) -> Tensor:
        output, sums = torch.empty_like(query), []
        for queries, keys in rule.spans:
            inputs = (query[:, :, queries], key[:, :, keys], value[:, :, keys])
            bias = _bias(rule, queries, keys, query.dtype)
            output[:, :, queries], sum_ = _forward(*inputs, attn_mask=bias, scale=scale)
            sums.append(sum_)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.rule, ctx.scale = rule, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *sums = ctx.saved_tensors
        to_query, to_key, to_value = map(torch.zeros_like, (query, key, value))
        for (queries, keys), sum_ in zip(ctx.rule.spans, sums, strict=True):
            inputs = (query[:, :, queries], key[:, :, keys], value[:, :, keys])
            bias = _bias(ctx.rule, queries, keys, query.dtype)
            found = output[:, :, queries], sum_, 0.0, False
            parts = _backward(
                gradients[0][:, :, queries], *inputs, *found, attn_mask=bias, scale=ctx.scale
            )
            to_query[:, :, queries] = parts[0]
            to_key[:, :, keys] += parts[1]
            to_value[:, :, keys] += parts[2]
        return to_query, to_key, to_value, None, None


def _bias(rule: AttentionRule, queries: slice, keys: slice, dtype: torch.dtype) -> Tensor:
    """What logits get added, [B, 1, queries, keys]: 0 where a query may attend, or else -inf."""
    seen = rule.part(queries, keys)[:, None]
    return torch.zeros((), dtype=dtype, device=seen.device).where(seen, -torch.inf)
