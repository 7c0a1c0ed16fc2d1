"""Masked prediction in blocks.

A step runs the network on ``[x_t ; x_0]``, the noisy rows followed by the clean ones, under the
mask of ``diffusion.masks``. With complementary masks there are two views of every row, which mask
the supervised tokens between them, stacked along the batch.

Shapes: B rows, T tokens of a row, W views, WB = W * B stacked rows, N masked tokens of all views,
D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.diffusion.corruption import Corruption, complement, corrupt
from wrinklefree.diffusion.masks import Blocks, block_diffusion_mask, find_blocks
from wrinklefree.diffusion.objective import (
    loss_denominator,
    loss_weights,
    masked_cross_entropy,
    noisy_and_clean,
)
from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.diffusion.shift import predictor_rows, supervised_tokens
from wrinklefree.mixture.batch import Batch
from wrinklefree.train.objectives.objective import LossOutput, Prepared
from wrinklefree.train.objectives.rows import hidden_states, logits_of, sum_by_row


@dataclass(frozen=True)
class DiffusionPrepared(Prepared):
    """A micro-batch with its masks drawn; ``supervised_BT`` is what could have been masked."""

    blocks: Blocks
    views: tuple[Corruption, ...]


@dataclass(frozen=True)
class MaskedTokens:
    """The masked tokens of all views, in reading order, and what they are predicted from."""

    hidden_ND: Tensor
    targets_N: Tensor
    """int64: the tokens behind the masks."""
    weight_N: Tensor
    """float32: factor of each token's loss."""
    row_N: Tensor
    """int64: row of the micro-batch, 0..B-1."""
    position_N: Tensor
    """int64: place in the row."""


class BlockDiffusion:
    """Cross-entropy of masked tokens given earlier blocks and the rest of their own."""

    def __init__(self, settings: DiffusionSettings, mask_token_id: int, seed: int) -> None:
        """``seed``: the run's; what is masked follows from it, the step and the sample's number."""
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
        return loss_denominator(
            prepared.views, prepared.supervised_BT, self.settings.loss_weighting
        )

    def loss(
        self, model: PreTrainedModel, prepared: DiffusionPrepared, denominator: float
    ) -> LossOutput:
        """Weighted cross-entropy over ``denominator``; the row sums are not weighted."""
        masked = self.predict(model, prepared)
        loss_N = masked_cross_entropy(
            logits_of(model, masked.hidden_ND), masked.targets_N, self.mask_token_id
        )
        return LossOutput(
            loss=(masked.weight_N * loss_N).sum() / denominator,
            row_loss_B=sum_by_row(loss_N, masked.row_N, len(prepared.supervised_BT)),
            row_tokens_B=masked_per_row(prepared),
        )

    def predict(self, model: PreTrainedModel, prepared: DiffusionPrepared) -> MaskedTokens:
        """Run the network on all views and gather the rows that predict masked tokens."""
        batch, views = prepared.batch, prepared.views
        masked_WBT = torch.cat([view.masked_BT for view in views])
        weight_WBT = torch.cat([loss_weights(view, self.settings.loss_weighting) for view in views])
        clean_WBT = batch.tokens_BT.repeat(len(views), 1)
        tokens, positions = noisy_and_clean(
            clean_WBT, batch.positions_BT.repeat(len(views), 1), masked_WBT, self.mask_token_id
        )
        mask = block_diffusion_mask(prepared.blocks).repeat(len(views), 1, 1, 1)
        hidden = hidden_states(model, tokens, positions, mask)
        row_N, position_N = masked_WBT.nonzero(as_tuple=True)
        batch_row_N = row_N % len(batch.tokens_BT)
        predictor_BT = predictor_rows(prepared.blocks, self.settings.token_shift)
        return MaskedTokens(
            hidden_ND=hidden[row_N, predictor_BT[batch_row_N, position_N]],
            targets_N=clean_WBT[row_N, position_N],
            weight_N=weight_WBT[row_N, position_N],
            row_N=batch_row_N,
            position_N=position_N,
        )


def masked_per_row(prepared: DiffusionPrepared) -> Tensor:
    """Masked tokens of each row, all views together, int64 [B]."""
    return torch.stack([view.masked_BT for view in prepared.views]).sum((0, 2))
