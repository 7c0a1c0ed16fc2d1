"""Masked tokens, in blocks.

The network runs on ``[x_t ; x_0]``, the noisy rows followed by the clean ones, under the mask of
``diffusion.masks``. With complementary masks there are two views of every row, which mask the
supervised tokens between them, stacked along the batch.

Shapes: as in ``question``; W views, R = W * B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wrinklefree.diffusion.corruption import Corruption, complement, corrupt
from wrinklefree.diffusion.masks import Blocks, block_diffusion_mask, find_blocks
from wrinklefree.diffusion.objective import loss_denominator, loss_weights, noisy_and_clean
from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.diffusion.shift import predictor_rows, supervised_tokens
from wrinklefree.mixture.batch import Batch
from wrinklefree.train.objectives.question import Prepared, Question


@dataclass(frozen=True)
class DiffusionPrepared(Prepared):
    """A micro-batch with its masks drawn; ``supervised_BT`` is what could have been masked."""

    blocks: Blocks
    views: tuple[Corruption, ...]


class BlockDiffusion:
    """Masked tokens are asked for, given earlier blocks and the rest of their own.

    Parameters
    ----------
    seed : the run's; what is masked follows from it, the step and the sample's number.
    """

    def __init__(self, settings: DiffusionSettings, mask_token_id: int, seed: int) -> None:
        self.settings = settings
        self.mask_token_id = mask_token_id
        self.seed = seed

    def prepare(self, batch: Batch, step: int) -> DiffusionPrepared:
        """Draw the masks."""
        shift = self.settings.token_shift
        blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, self.settings.block_size)
        supervised_BT = supervised_tokens(batch.tokens_BT, blocks, shift, self.mask_token_id)
        view = corrupt(blocks, supervised_BT, batch.sample_B, seed=self.seed, step=step)
        views = (view,)
        if self.settings.complementary_masks:
            views = (view, complement(view, supervised_BT))
        return DiffusionPrepared(batch, supervised_BT, blocks, views)

    def denominator(self, prepared: DiffusionPrepared) -> float:
        """See ``loss_denominator``."""
        weighting = self.settings.loss_weighting
        return loss_denominator(prepared.views, prepared.supervised_BT, weighting)

    def question(self, prepared: DiffusionPrepared) -> Question:
        """Each token is asked for at the row that ``token_shift`` says, in all views."""
        batch, views = prepared.batch, prepared.views
        rows, length = batch.tokens_BT.shape
        masked_RT = torch.cat([view.masked_BT for view in views])
        weight_RT = torch.cat([loss_weights(view, self.settings.loss_weighting) for view in views])
        clean_RT = batch.tokens_BT.repeat(len(views), 1)
        tokens_RS, positions_RS = noisy_and_clean(
            clean_RT, batch.positions_BT.repeat(len(views), 1), masked_RT, self.mask_token_id
        )
        asking_row_N, position_N = masked_RT.nonzero(as_tuple=True)
        row_N = asking_row_N % rows
        predictor_BT = predictor_rows(prepared.blocks, self.settings.token_shift)
        return Question(
            tokens_RS=tokens_RS,
            positions_RS=positions_RS,
            mask=block_diffusion_mask(prepared.blocks.repeat(len(views))),
            asking_row_N=asking_row_N,
            asking_position_N=predictor_BT[row_N, position_N],
            row_N=row_N,
            position_N=position_N,
            target_N=clean_RT[asking_row_N, position_N],
            weight_N=weight_RT[asking_row_N, position_N],
            clean_weight_BT=self._clean_weight(prepared),
            piece_BT=prepared.blocks.piece_BT,
            # The clean half is the same in every view: the first one's stands for all.
            clean_start=length,
            mask_token_id=self.mask_token_id,
        )

    def _clean_weight(self, prepared: DiffusionPrepared) -> Tensor:
        """Makes a term on clean tokens a mean: over masked ones (``unit``) or all (``elbo``)."""
        views = prepared.views
        if self.settings.loss_weighting == "unit":
            return torch.stack([view.masked_BT for view in views]).sum(0).float()
        return len(views) * prepared.supervised_BT.float()
