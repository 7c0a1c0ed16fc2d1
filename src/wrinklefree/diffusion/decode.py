"""Text from a block-diffusion model, block by block (Fast-dLLM v2, arXiv 2509.26328).

The tokens of a block are masked together and committed as soon as the model is sure of them; every
pass commits at least the one it is surest of. At block size 1 with token shift ``clean_boundary``
this is greedy autoregressive decoding.

Shapes: B = 1 row, L tokens up to the end of the current block, M masked tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.diffusion.masks import Blocks, block_causal_mask
from wrinklefree.diffusion.shift import TokenShift
from wrinklefree.errors import UserError
from wrinklefree.models.forward import next_token_logits, without_mask_token


@dataclass(frozen=True)
class Decoded:
    """A continuation and its price."""

    tokens: list[int]
    """New tokens; the last one is end of text if the model stopped by itself."""
    forward_passes: int
    """``len(tokens) / forward_passes`` tells how much is decoded in parallel."""
    fixed_in: list[int]
    """Of each token the pass that committed it, counted in its block from 1."""


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    prompt: list[int],
    *,
    block_size: int,
    token_shift: TokenShift,
    mask_token_id: int,
    end_of_text_id: int,
    new_tokens: int,
    threshold: float = 0.9,
) -> Decoded:
    """Continue a prompt greedily by at most ``new_tokens`` tokens.

    In every pass, all tokens of the block whose best choice has a probability over ``threshold``
    are committed, and always the most probable one. Blocks are counted from the start of the
    prompt, whose end may lie within one. The last block is decoded whole and then cut, so that a
    smaller limit gives a beginning of the same text.

    Raises UserError if the prompt is empty and the token shift leaves the first token without a
    predictor.
    """
    if not prompt and token_shift != "none":
        raise UserError(
            f"the prompt is empty, but with token shift {token_shift} a model predicts every token"
            " from the one before it; give a prompt of at least one token"
        )
    tokens = list(prompt)
    passes, fixed_in = 0, [0] * len(prompt)
    while len(tokens) < len(prompt) + new_tokens:
        block_end = (len(tokens) // block_size + 1) * block_size
        masked = list(range(len(tokens), block_end))
        tokens += [mask_token_id] * len(masked)
        before = passes
        fixed_in += [0] * len(masked)
        while masked:
            choice_M, probability_M = _predict(
                model, tokens, masked, block_size, token_shift, mask_token_id
            )
            passes += 1
            remaining = _commit(tokens, masked, choice_M, probability_M, threshold)
            for position in set(masked) - set(remaining):
                fixed_in[position] = passes - before
            masked = remaining
            known = tokens[len(prompt) : masked[0] if masked else block_end][:new_tokens]
            if end_of_text_id in known:
                known = known[: known.index(end_of_text_id) + 1]
                return Decoded(known, passes, fixed_in[len(prompt) :][: len(known)])
    new = slice(len(prompt), len(prompt) + new_tokens)
    return Decoded(tokens[new], passes, fixed_in[new])


def _commit(
    tokens: list[int],
    masked: list[int],
    choice_M: Tensor,
    probability_M: Tensor,
    threshold: float,
) -> list[int]:
    """Write the sure choices into ``tokens``; returns the positions that stay masked."""
    commit_M = probability_M > threshold
    commit_M[probability_M.argmax()] = True
    remaining = []
    choices = zip(masked, choice_M.tolist(), commit_M.tolist(), strict=True)
    for position, token, commit in choices:
        if commit:
            tokens[position] = token
        else:
            remaining.append(position)
    return remaining


def _predict(
    model: PreTrainedModel,
    tokens: list[int],
    masked: list[int],
    block_size: int,
    token_shift: TokenShift,
    mask_token_id: int,
) -> tuple[Tensor, Tensor]:
    """The best token of every masked position, int64 [M], and its probability, float [M].

    Earlier blocks are committed, so their rows are clean ones: here ``noisy`` and
    ``clean_boundary`` read the first token of a block off the same row.
    """
    tokens_BL = torch.tensor([tokens], device=model.device)
    positions_BL = torch.arange(len(tokens), device=model.device)[None]
    blocks = Blocks(torch.zeros_like(positions_BL), positions_BL // block_size)
    logits_BLV = next_token_logits(model, tokens_BL, positions_BL, block_causal_mask(blocks))
    rows = masked if token_shift == "none" else [position - 1 for position in masked]
    probabilities_MV = without_mask_token(logits_BLV[0, rows], mask_token_id).softmax(-1)
    probability_M, choice_M = probabilities_MV.max(-1)
    return choice_M, probability_M
