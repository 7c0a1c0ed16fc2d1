"""Masked tokens between those that are given (MaskGIT, arXiv 2202.04200).

Shapes: as in ``question``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wrinklefree.diffusion.corruption import cosine_masks
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import document_mask
from wrinklefree.train.objectives.question import Prepared, Question


@dataclass(frozen=True)
class MaskedPrepared(Prepared):
    """A micro-batch with its masks drawn; ``supervised_BT`` is what could have been masked."""

    masked_BT: Tensor


class MaskedTokens:
    """Masked tokens are asked for, given the others of their document before and behind them.

    How many are masked follows a cosine (``diffusion.corruption``). There is no clean text beside
    the masked one: what terms of a teacher see inside of the student is the masked text.

    Parameters
    ----------
    context : tokens at the beginning of a document that are always given.
    seed : the run's; what is masked follows from it, the step and the sample's number.
    """

    def __init__(self, mask_token_id: int, context: int, seed: int) -> None:
        self.mask_token_id = mask_token_id
        self.context = context
        self.seed = seed

    def prepare(self, batch: Batch, step: int) -> MaskedPrepared:
        """Draw the masks."""
        maskable_BT = (batch.document_ids_BT >= 0) & (batch.positions_BT >= self.context)
        masked_BT = cosine_masks(maskable_BT, batch.sample_B, seed=self.seed, step=step)
        return MaskedPrepared(batch, maskable_BT, masked_BT)

    def denominator(self, prepared: MaskedPrepared) -> float:
        """Masked tokens."""
        return float(prepared.masked_BT.sum())

    def question(self, prepared: MaskedPrepared) -> Question:
        """Each token is asked for where it stands."""
        batch, masked_BT = prepared.batch, prepared.masked_BT
        row_N, position_N = masked_BT.nonzero(as_tuple=True)
        return Question(
            tokens_RS=batch.tokens_BT.masked_fill(masked_BT, self.mask_token_id),
            positions_RS=batch.positions_BT,
            mask=document_mask(batch.document_ids_BT),
            asking_row_N=row_N,
            asking_position_N=position_N,
            row_N=row_N,
            position_N=position_N,
            target_N=batch.tokens_BT[masked_BT],
            weight_N=torch.ones(len(row_N), device=row_N.device),
            clean_weight_BT=masked_BT,
            piece_BT=batch.document_ids_BT,
            clean_start=0,
            mask_token_id=self.mask_token_id,
        )
