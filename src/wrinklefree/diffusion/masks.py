"""Who attends to whom in block diffusion (BD3-LM, arXiv 2503.09573; SDAR, 2510.06303).

Blocks are counted inside each document piece, because a packed row holds pieces that start
anywhere: a block is (piece, position in the piece // block_size). The last block of a piece may be
shorter than ``block_size``. Nothing is padded to a multiple for that: a short block is a block like
any other, as long as whoever weighs by the size of a block counts its tokens (see ``likelihood``).

Shapes: B rows, T tokens of a row. Every token may attend to itself: a padded row does, and its
softmax stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wrinklefree.models.attention import AttentionRule

PADDING = -1


@dataclass(frozen=True)
class Blocks:
    """The document pieces and the blocks of a micro-batch; both int64, -1 on padding."""

    piece_BT: Tensor
    """Number of the document piece, counted along the row."""
    block_BT: Tensor
    """Number of the block, unique within the row and growing along it."""

    def repeat(self, times: int) -> Blocks:
        """The same rows ``times`` times over, [times * B, T]."""
        return Blocks(self.piece_BT.repeat(times, 1), self.block_BT.repeat(times, 1))


def find_blocks(document_ids_BT: Tensor, positions_BT: Tensor, block_size: int) -> Blocks:
    """Number the document pieces and blocks of packed rows.

    A piece starts where the document changes or where positions restart, so that two pieces of one
    document in the same row stay strangers.
    """
    real_BT = document_ids_BT != PADDING
    changes_BT = torch.ones_like(real_BT)
    changes_BT[:, 1:] = document_ids_BT[:, 1:] != document_ids_BT[:, :-1]
    piece_starts_BT = (changes_BT | (positions_BT == 0)) & real_BT
    block_starts_BT = piece_starts_BT | ((positions_BT % block_size == 0) & real_BT)
    return Blocks(
        piece_BT=(piece_starts_BT.cumsum(1) - 1).masked_fill(~real_BT, PADDING),
        block_BT=(block_starts_BT.cumsum(1) - 1).masked_fill(~real_BT, PADDING),
    )


def block_diffusion_mask(blocks: Blocks) -> AttentionRule:
    """Attention over ``[x_t ; x_0]``, the noisy row followed by the clean one: 2T tokens.

    Noisy to noisy iff in the same block; noisy to clean iff the key's block is earlier; clean to
    clean iff the key's block is not later; clean never to noisy; always within one document piece.
    """
    rows, length = blocks.block_BT.shape

    def allows(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        queried, asked = query % length, key % length
        query_block, key_block = blocks.block_BT[row, queried], blocks.block_BT[row, asked]
        noisy_query, noisy_key = query < length, key < length
        from_noisy = torch.where(noisy_key, key_block == query_block, key_block < query_block)
        from_clean = ~noisy_key & (key_block <= query_block)
        seen = torch.where(noisy_query, from_noisy, from_clean)
        return seen & _same_piece(blocks, row, queried, asked) | (query == key)

    return AttentionRule(rows, 2 * length, blocks.block_BT.device, allows)


def block_causal_mask(blocks: Blocks) -> AttentionRule:
    """Attention over a row alone, to the own and earlier blocks of the piece.

    What the clean half of ``block_diffusion_mask`` sees, and what decoding uses.
    """

    rows, length = blocks.block_BT.shape

    def allows(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        earlier = blocks.block_BT[row, key] <= blocks.block_BT[row, query]
        return earlier & _same_piece(blocks, row, query, key) | (query == key)

    return AttentionRule(rows, length, blocks.block_BT.device, allows)


def _same_piece(blocks: Blocks, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
    query_piece = blocks.piece_BT[row, query]
    return (query_piece == blocks.piece_BT[row, key]) & (query_piece != PADDING)
