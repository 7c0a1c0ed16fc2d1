"""Who may attend to whom.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from wrinklefree.models.layers import has_states

FLEX = "flex_attention"
"""What transformers calls the attention that looks at blocks of pairs and skips empty ones."""


@dataclass(frozen=True)
class AttentionRule:
    """Who may attend to whom, as a function of numbers: not every attention needs all pairs."""

    rows: int
    tokens: int
    device: torch.device
    allows: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Whether in a row a query may attend to a key: int64 of any shapes that broadcast to bool."""

    def dense(self) -> Tensor:
        """bool [B, 1, T, T]: True where the query (third) may attend to the key (fourth)."""
        row_B, token_T = (
            torch.arange(size, device=self.device) for size in (self.rows, self.tokens)
        )
        return self.allows(row_B[:, None, None], token_T[:, None], token_T)[:, None]

    def blocks(self) -> BlockMask:
        """What FlexAttention reads: the rule, and which blocks of pairs have none to look at."""
        return create_block_mask(
            lambda row, head, query, key: self.allows(row, query, key),
            *(self.rows, None, self.tokens, self.tokens),
            device=self.device,
            _compile=self.device.type == "cuda",  # without it all pairs are in memory once
        )

    def of(self, model: PreTrainedModel) -> Tensor | BlockMask | dict[str, Tensor]:
        """In the form that the attention of ``model`` reads, and its mixers where it has any."""
        if has_states(model.config):
            return dict.fromkeys(model.config.layer_types, self.dense())  # pyright: ignore
        return self.blocks() if model.config._attn_implementation == FLEX else self.dense()


def document_mask(document_ids_BT: Tensor) -> AttentionRule:
    """A token sees all tokens of its own document, before and behind it.

    Padding, document -1, counts as a document of its own: every row keeps its diagonal, so that no
    softmax is over nothing.
    """

    rows, length = document_ids_BT.shape

    def allows(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return document_ids_BT[row, query] == document_ids_BT[row, key]

    return AttentionRule(rows, length, document_ids_BT.device, allows)


def causal_document_mask(document_ids_BT: Tensor) -> AttentionRule:
    """A token sees itself and the earlier tokens of its own document, padding as above."""
    whole = document_mask(document_ids_BT)

    def allows(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return whole.allows(row, query, key) & (key <= query)

    return replace(whole, allows=allows)
