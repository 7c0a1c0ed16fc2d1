"""Who may attend to whom.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import PreTrainedModel

from wrinklefree.models.layers import has_states

FLEX = "flex_attention"
"""What transformers calls the attention that looks at blocks of pairs and skips empty ones."""
BY_BLOCKS = "sdpa_by_blocks"
"""The same for processors: see ``models/attention_by_blocks.py``."""
QUERIES = 256
"""Of a block there; rows of no more tokens have a mask of all pairs."""


@dataclass(frozen=True)
class AttentionRule:
    """Who may attend to whom, as a function of numbers: not every attention needs all pairs."""

    rows: int
    tokens: int
    device: torch.device
    allows: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Whether in a row a query may attend to a key: int64 of any shapes that broadcast to bool."""

    def __call__(self, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """``allows``, as FlexAttention asks."""
        return self.allows(row, query, key)

    def dense(self) -> Tensor:
        """bool [B, 1, T, T]: True where the query (third) may attend to the key (fourth)."""
        every = slice(0, self.tokens)
        return self.part(every, every)[:, None]

    def part(self, queries: slice, keys: slice) -> Tensor:
        """bool [B, queries, keys], of some queries and keys."""
        row_B, query, key = (
            torch.arange(each.start, each.stop, device=self.device)
            for each in (slice(0, self.rows), queries, keys)
        )
        return self.allows(row_B[:, None, None], query[:, None], key)

    @cached_property
    def spans(self) -> list[tuple[slice, slice]]:
        """Blocks of queries, each with the keys from the first to the last that it sees."""
        spans = []
        for start in range(0, self.tokens, QUERIES):
            queries = slice(start, min(start + QUERIES, self.tokens))
            seen_T = self.part(queries, slice(0, self.tokens)).flatten(0, 1).any(0)
            first, last = seen_T.nonzero()[[0, -1], 0].tolist()
            spans.append((queries, slice(first, last + 1)))
        return spans

    def unmade(self) -> BlockMask:
        """The rule in a form that transformers passes on to attention as it is."""
        one = torch.ones(1, 1, 1, 1, dtype=torch.int32)
        return BlockMask.from_kv_blocks(one[0], one - 1, BLOCK_SIZE=self.tokens, mask_mod=self)

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
        attention = model.config._attn_implementation
        if attention == BY_BLOCKS and self.tokens > QUERIES:
            return self.unmade()
        return self.blocks() if attention == FLEX else self.dense()


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
