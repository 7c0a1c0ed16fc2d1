"""Who attends to whom in block diffusion (BD3-LM, arXiv 2503.09573; SDAR, 2510.06303).

Blocks are counted inside each document piece, because a packed row holds pieces that start
anywhere: a block is (piece, position in the piece // block_size). The last block of a piece may be
shorter than ``block_size``. Nothing is padded to a multiple for that: a short block is a block like
any other, as long as whoever weighs by the size of a block counts its tokens (see ``likelihood``).

Shapes: B rows, T tokens of a row. All masks are boolean, True where a query may attend to a key.
The diagonal is always True: a padded row attends to itself, and its softmax stays finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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


def block_diffusion_mask(blocks: Blocks) -> Tensor:
    """Attention over ``[x_t ; x_0]``, the noisy row followed by the clean one: bool [B, 1, 2T, 2T].

    Noisy to noisy iff in the same block; noisy to clean iff the key's block is earlier; clean to
    clean iff the key's block is not later; clean never to noisy; always within one document piece.
    """
    same_piece_BTT = _same_piece(blocks)
    query_BT1, key_B1T = blocks.block_BT[:, :, None], blocks.block_BT[:, None, :]
    noisy_to_noisy_BTT = same_piece_BTT & (query_BT1 == key_B1T)
    noisy_to_clean_BTT = same_piece_BTT & (key_B1T < query_BT1)
    clean_to_clean_BTT = same_piece_BTT & (key_B1T <= query_BT1)
    noisy_BT2T = torch.cat([noisy_to_noisy_BTT, noisy_to_clean_BTT], dim=2)
    clean_BT2T = torch.cat([torch.zeros_like(same_piece_BTT), clean_to_clean_BTT], dim=2)
    return _with_diagonal(torch.cat([noisy_BT2T, clean_BT2T], dim=1))


def block_causal_mask(blocks: Blocks) -> Tensor:
    """Attention over a row alone, to the own and earlier blocks of the piece: bool [B, 1, T, T].

    What the clean half of ``block_diffusion_mask`` sees, and what decoding uses.
    """
    earlier_BTT = blocks.block_BT[:, None, :] <= blocks.block_BT[:, :, None]
    return _with_diagonal(_same_piece(blocks) & earlier_BTT)


def _same_piece(blocks: Blocks) -> Tensor:
    query_BT1, key_B1T = blocks.piece_BT[:, :, None], blocks.piece_BT[:, None, :]
    return (query_BT1 == key_B1T) & (query_BT1 != PADDING)


def _with_diagonal(mask_BSS: Tensor) -> Tensor:
    diagonal_SS = torch.eye(mask_BSS.shape[-1], dtype=torch.bool, device=mask_BSS.device)
    return (mask_BSS | diagonal_SS)[:, None]
