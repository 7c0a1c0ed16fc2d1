"""An unbiased estimate of how well a block-diffusion model predicts a text.

A block of n supervised tokens is charged the negative evidence lower bound over the orders in which
it may be decoded: draw l uniformly from 1..n, mask exactly l of the n, weigh the sum of the masked
tokens' losses by n / l (LLaDA, arXiv 2502.09992, eq. 6; the any-order likelihood of 2110.02037). n
is counted, not taken to be ``block_size``: the last block of a document piece may be short, and
with a token shift the first token of a piece is given. Blocks of one token leave nothing to chance.

Earlier blocks are seen clean, except that token shift ``noisy`` reads the first token of a block
off the noisy row before it.

Shapes: D draws (of nats) or hidden size, B rows, T tokens of a row, N masked tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.diffusion.corruption import keyed_generator
from wrinklefree.diffusion.masks import Blocks, block_diffusion_mask, find_blocks
from wrinklefree.diffusion.objective import noisy_and_clean
from wrinklefree.diffusion.shift import TokenShift, predictor_rows, supervised_tokens
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.forward import hidden_states
from wrinklefree.models.losses import cross_entropies


@dataclass(frozen=True)
class NegativeElbo:
    """Estimates of a micro-batch; the mean over draws is unbiased, their spread is its error."""

    nats_DBT: Tensor
    """float64: what each token adds, 0 where a draw did not mask it. Blocks add up, not tokens."""
    supervised_BT: Tensor
    """bool: the tokens that count."""


@torch.no_grad()
def negative_elbo(
    model: PreTrainedModel,
    batch: Batch,
    *,
    block_size: int,
    token_shift: TokenShift,
    mask_token_id: int,
    draws: int,
    seed: int,
) -> NegativeElbo:
    """Estimate the negative evidence lower bound of every token, ``draws`` times.

    A function of (seed, draw, domain, sample), for held-out samples are counted by domain. It
    depends neither on the batch size nor on the device.
    """
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, block_size)
    supervised_BT = supervised_tokens(batch.tokens_BT, blocks, token_shift, mask_token_id)
    nats = []
    row_keys = torch.stack([batch.domain_B, batch.sample_B], 1).tolist()
    for draw in range(draws):
        keys = [(seed, draw, *key) for key in row_keys]
        masked_BT, weight_BT = draw_masks(blocks, supervised_BT, keys)
        loss_BT = masked_token_losses(
            model, batch, blocks, masked_BT, token_shift=token_shift, mask_token_id=mask_token_id
        )
        nats.append(loss_BT.double() * weight_BT)
    return NegativeElbo(torch.stack(nats), supervised_BT)


def draw_masks(
    blocks: Blocks, supervised_BT: Tensor, keys: Sequence[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """Mask l ~ U{1..n} of the n supervised tokens of every block, drawn by the key of its row.

    Returns the mask, bool [B, T], and the weight n / l of every masked token, float64 [B, T], 0
    elsewhere.
    """
    supervised = supervised_BT.cpu().numpy()
    block = blocks.block_BT.cpu().numpy()
    weight = np.zeros(supervised.shape)
    for row, key in enumerate(keys):
        generator = keyed_generator("likelihood", *key)
        for name in np.unique(block[row, supervised[row]]):
            members = np.flatnonzero(supervised[row] & (block[row] == name))
            chosen = generator.permutation(members)[: generator.integers(1, len(members) + 1)]
            weight[row, chosen] = len(members) / len(chosen)
    weight_BT = torch.from_numpy(weight).to(supervised_BT.device)
    return weight_BT > 0, weight_BT


@torch.no_grad()
def masked_token_losses(
    model: PreTrainedModel,
    batch: Batch,
    blocks: Blocks,
    masked_BT: Tensor,
    *,
    token_shift: TokenShift,
    mask_token_id: int,
) -> Tensor:
    """Cross-entropy (nats) of every masked token given the rest, [B, T]; 0 where not masked."""
    tokens, positions = noisy_and_clean(
        batch.tokens_BT, batch.positions_BT, masked_BT, mask_token_id
    )
    hidden = hidden_states(model, tokens, positions, block_diffusion_mask(blocks))
    row_N, position_N = masked_BT.nonzero(as_tuple=True)
    hidden_ND = hidden[row_N, predictor_rows(blocks, token_shift)[row_N, position_N]]
    target_N = batch.tokens_BT[row_N, position_N]
    loss_N = cross_entropies(model, hidden_ND, target_N, mask_token_id)
    loss_BT = torch.zeros(masked_BT.shape, dtype=loss_N.dtype, device=loss_N.device)
    loss_BT[row_N, position_N] = loss_N
    return loss_BT
