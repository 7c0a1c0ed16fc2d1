"""From which row of the network's output a token is predicted.

An autoregressive model reads the prediction of token i off row i - 1. Keeping that habit saves the
conversion from learning it anew (Fast-dLLM v2, arXiv 2509.26328):

- ``none``: token i from its own noisy row i. Every token can be predicted, the first one as well.
- ``noisy``: from noisy row i - 1, also across the border of a block.
- ``clean_boundary``: from noisy row i - 1 within a block; the first token of a block from the clean
  row before it, which has seen every token up to i - 1. At block size 1 this is the autoregressive
  model.

With either shift the first token of a document piece has no row to be read from: it is given, never
masked and never counted, in training, likelihood and decoding alike. So ``none`` counts one token
more per piece; compare likelihoods of models with the same shift only.

Shapes: B rows, T tokens of a row; rows of ``[x_t ; x_0]`` are numbered 0..2T-1, clean ones from T.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wrinklefree.diffusion.masks import PADDING, Blocks

TokenShift = Literal["none", "noisy", "clean_boundary"]


def supervised_tokens(
    tokens_BT: Tensor, blocks: Blocks, token_shift: TokenShift, mask_token_id: int
) -> Tensor:
    """Tokens that the model can be asked for: bool [B, T].

    Neither padding, nor what has no row to be read from, nor a mask token that stands in the text:
    its probability is 0 by construction, and its loss would be infinite.
    """
    return _has_predictor(blocks, token_shift) & (tokens_BT != mask_token_id)


def predictor_rows(blocks: Blocks, token_shift: TokenShift) -> Tensor:
    """Row of ``[x_t ; x_0]`` that predicts each token: int64 [B, T]; else the token's own."""
    length = blocks.block_BT.shape[1]
    own_BT = torch.arange(length, device=blocks.block_BT.device).expand_as(blocks.block_BT)
    if token_shift == "none":
        return own_BT
    rows_BT = own_BT - 1
    if token_shift == "clean_boundary":
        rows_BT = torch.where(_first_of(blocks.block_BT), rows_BT + length, rows_BT)
    return torch.where(_has_predictor(blocks, token_shift), rows_BT, own_BT)


def _has_predictor(blocks: Blocks, token_shift: TokenShift) -> Tensor:
    real_BT = blocks.piece_BT != PADDING
    return real_BT if token_shift == "none" else real_BT & ~_first_of(blocks.piece_BT)


def _first_of(number_BT: Tensor) -> Tensor:
    first_BT = torch.ones_like(number_BT, dtype=torch.bool)
    first_BT[:, 1:] = number_BT[:, 1:] != number_BT[:, :-1]
    return first_BT
