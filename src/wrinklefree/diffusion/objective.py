"""The masked loss of block diffusion, apart from the network.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from wrinklefree.diffusion.corruption import Corruption

LossWeighting = Literal["unit", "elbo"]


def noisy_and_clean(
    tokens_BT: Tensor, positions_BT: Tensor, masked_BT: Tensor, mask_token_id: int
) -> tuple[Tensor, Tensor]:
    """Tokens and positions of ``[x_t ; x_0]``, both int64 [B, 2T]; both halves share positions."""
    noisy_BT = tokens_BT.masked_fill(masked_BT, mask_token_id)
    return torch.cat([noisy_BT, tokens_BT], dim=1), torch.cat([positions_BT, positions_BT], dim=1)


def loss_weights(corruption: Corruption, weighting: LossWeighting) -> Tensor:
    """Factor of every token's loss, float32 [B, T]: 0 unless masked.

    ``unit``: 1. ``elbo``: 1 / p, whose expectation over t and the masks is the negative evidence
    lower bound (MDLM and LLaDA, with the linear schedule).
    """
    weight_BT = corruption.masked_BT.to(torch.float32)
    return weight_BT if weighting == "unit" else weight_BT / corruption.probability_BT


def loss_denominator(
    views: Sequence[Corruption], supervised_BT: Tensor, weighting: LossWeighting
) -> float:
    """What the weighted sum over all views is divided by.

    ``unit``: the tokens that are masked in any view; with complementary views those are all
    supervised ones. ``elbo``: all supervised tokens, masked or not, once per view, because every
    view is an estimate of the whole sum and the loss is their mean.
    """
    if weighting == "unit":
        return float(sum(int(view.masked_BT.sum()) for view in views))
    return float(len(views) * int(supervised_BT.sum()))
