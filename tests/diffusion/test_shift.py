from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.diffusion.masks import find_blocks
from wrinklefree.diffusion.shift import predictor_rows, supervised_tokens

MASK = 39


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    padding=st.integers(0, 2),
    block_size=st.integers(1, 7),
    shift=st.sampled_from(["none", "noisy", "clean_boundary"]),
)
def test_each_token_is_read_off_the_row_that_its_shift_names(pieces, padding, block_size, shift):
    places = [at for size in pieces for at in range(size)]
    documents = [piece for piece, size in enumerate(pieces) for _ in range(size)]
    length = len(places) + padding
    documents_BT = torch.tensor([documents + [-1] * padding])
    blocks = find_blocks(documents_BT, torch.tensor([places + [0] * padding]), block_size)
    tokens_BT = torch.zeros(1, length, dtype=torch.int64)
    supervised = supervised_tokens(tokens_BT, blocks, shift, MASK)[0].tolist()
    rows = predictor_rows(blocks, shift)[0].tolist()
    assert supervised[len(places) :] == [False] * padding
    for token, at in enumerate(places):
        assert supervised[token] == (shift == "none" or at > 0)
        if shift == "none":
            assert rows[token] == token
        elif at > 0:
            clean = shift == "clean_boundary" and at % block_size == 0
            assert rows[token] == token - 1 + (length if clean else 0)


@pytest.mark.parametrize("shift", ["none", "noisy", "clean_boundary"])
def test_a_mask_token_in_the_text_is_never_asked_for(shift):
    documents_BT, positions_BT = torch.zeros(1, 5, dtype=torch.int64), torch.arange(5)[None]
    blocks = find_blocks(documents_BT, positions_BT, 2)
    tokens_BT = torch.tensor([[1, 2, MASK, 3, 4]])
    assert not supervised_tokens(tokens_BT, blocks, shift, MASK)[0, 2]
    assert supervised_tokens(tokens_BT, blocks, shift, MASK)[0, 3:].all()
