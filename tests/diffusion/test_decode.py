from __future__ import annotations

import pytest
import torch

from wrinklefree.diffusion.decode import decode
from wrinklefree.diffusion.masks import block_diffusion_mask, find_blocks
from wrinklefree.diffusion.objective import noisy_and_clean
from wrinklefree.diffusion.shift import predictor_rows
from wrinklefree.errors import UserError
from wrinklefree.models.forward import next_token_logits

MASK = 39
NEVER = -1
SHIFTS = ["none", "noisy", "clean_boundary"]


def decoded(model, prompt, **changes):
    settings = {
        "block_size": 4,
        "token_shift": "clean_boundary",
        "mask_token_id": MASK,
        "end_of_text_id": NEVER,
        "new_tokens": 10,
    }
    return decode(model, prompt, **{**settings, **changes})


@torch.no_grad()
def slow_decode(model, prompt, block_size, shift, new_tokens, threshold):
    """As training sees it: both halves, one committed set after another."""
    tokens, target, passes = list(prompt), len(prompt) + new_tokens, 0
    fixed = {}
    while len(tokens) < target:
        end, before = len(tokens) + block_size - len(tokens) % block_size, passes
        row = torch.tensor([tokens + [0] * (end - len(tokens))])
        masked = torch.arange(end)[None] >= len(tokens)
        positions = torch.arange(end)[None]
        blocks = find_blocks(torch.zeros_like(row), positions, block_size)
        while masked.any():
            both, places = noisy_and_clean(row, positions, masked, MASK)
            logits = next_token_logits(model, both, places, block_diffusion_mask(blocks))
            logits = logits[0, predictor_rows(blocks, shift)[0]]
            logits[:, MASK] = float("-inf")
            best, choice = logits.softmax(-1).max(-1)
            best[~masked[0]] = -1
            passes += 1
            for place in {int(best.argmax()), *(best > threshold).nonzero()[:, 0].tolist()}:
                row[0, place], masked[0, place] = choice[place], False
                fixed[place] = passes - before
        tokens = row[0].tolist()
    return tokens[len(prompt) : target], passes, [fixed[p] for p in range(len(prompt), target)]


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("block_size", [1, 3, 5])
def test_decoding_sees_what_training_saw(tiny_model, shift, block_size):
    model = tiny_model(2)
    result = decoded(model, [4, 7], block_size=block_size, token_shift=shift, threshold=0.5)
    expected = slow_decode(model, [4, 7], block_size, shift, 10, 0.5)
    assert (result.tokens, result.forward_passes, result.fixed_in) == expected


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_blocks_of_one_token_decode_like_the_greedy_autoregressive_model(tiny_model, seed):
    model, tokens = tiny_model(seed), [3, 1, 4]
    for _ in range(12):
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
        logits[MASK] = float("-inf")
        tokens.append(int(logits.argmax()))
    result = decoded(model, [3, 1, 4], block_size=1, new_tokens=12)
    assert result.tokens == tokens[3:]
    assert result.forward_passes == 12


def test_the_threshold_trades_passes_for_certainty(tiny_model):
    model = tiny_model()
    assert decoded(model, [1] * 4, new_tokens=8, threshold=0.0).forward_passes == 2
    assert decoded(model, [1] * 4, new_tokens=8, threshold=1.0).forward_passes == 8


def test_settings_that_change_the_text(tiny_model):
    model = tiny_model()
    texts = [
        decoded(model, [1, 2], block_size=size, token_shift=shift, new_tokens=24).tokens
        for size in (3, 8)
        for shift in ("none", "clean_boundary")
    ]
    assert len({tuple(text) for text in texts}) == 4


def test_decoding_stops_at_the_end_of_the_text(tiny_model):
    model = tiny_model()
    tokens = decoded(model, [1, 2], threshold=0.0).tokens
    end = next(token for token in tokens[3:] if tokens.index(token) >= 3)
    result = decoded(model, [1, 2], threshold=0.0, end_of_text_id=end)
    assert result.tokens == tokens[: tokens.index(end) + 1]
    assert len(result.fixed_in) == len(result.tokens)


@pytest.mark.parametrize("threshold", [0.04, 1.0])
def test_a_text_ends_once_nothing_before_its_end_is_masked(tiny_model, threshold):
    model, how = tiny_model(), {"threshold": threshold, "block_size": 8}
    tokens = decoded(model, [1, 2], **how).tokens
    for end in set(tokens):
        found = decoded(model, [1, 2], end_of_text_id=end, **how)
        assert found.tokens == tokens[: tokens.index(end) + 1]


def test_an_end_of_text_beyond_the_limit_is_not_reached(tiny_model):
    model, prompt = tiny_model(), [1, 2, 3, 4]
    tokens = decoded(model, prompt, block_size=8, new_tokens=4, threshold=0.0).tokens
    beyond = next(at for at in range(1, 4) if tokens.index(tokens[at]) == at)
    changes = {"block_size": 8, "threshold": 0.0, "end_of_text_id": tokens[beyond]}
    assert decoded(model, prompt, new_tokens=beyond, **changes).tokens == tokens[:beyond]
    assert decoded(model, prompt, new_tokens=4, **changes).tokens == tokens[: beyond + 1]


@pytest.mark.parametrize("new_tokens", [0, 1, 5, 9])
def test_a_smaller_limit_gives_a_beginning_of_the_same_text(tiny_model, new_tokens):
    model = tiny_model()
    result = decoded(model, [1, 2, 3], new_tokens=new_tokens)
    assert result.tokens == decoded(model, [1, 2, 3], new_tokens=16).tokens[:new_tokens]
    assert len(result.tokens) == new_tokens


def test_the_mask_token_is_never_written_however_probable(tiny_model):
    model = tiny_model()
    plain = decoded(model, [1, 2], new_tokens=6).tokens
    with torch.no_grad():
        model.lm_head.weight[MASK] = 50 * model.lm_head.weight[plain[0]]
    assert decoded(model, [1, 2], new_tokens=6).tokens == plain


@pytest.mark.parametrize("shift", SHIFTS)
def test_only_an_unshifted_model_starts_from_nothing(tiny_model, shift):
    if shift == "none":
        assert len(decoded(tiny_model(), [], token_shift=shift).tokens) == 10
    else:
        with pytest.raises(UserError, match="prompt is empty"):
            decoded(tiny_model(), [], token_shift=shift)
