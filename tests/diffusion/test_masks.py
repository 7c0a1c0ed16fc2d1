from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.diffusion.masks import block_causal_mask, block_diffusion_mask, find_blocks
from wrinklefree.diffusion.objective import noisy_and_clean
from wrinklefree.models.attention import AttentionRule, causal_document_mask
from wrinklefree.models.forward import next_token_logits
from wrinklefree.quant import codes
from wrinklefree.quant.bitlinear import BitLinear

MASK = 39


def slow_masks(pieces, length, block_size):
    """The rules of the specification, pair by pair."""
    place = [(piece, at // block_size) for piece, size in enumerate(pieces) for at in range(size)]
    place += [None] * (length - len(place))

    def may(query_clean, query, key_clean, key):
        if (query_clean, query) == (key_clean, key):
            return True
        if place[query] is None or place[key] is None or place[query][0] != place[key][0]:
            return False
        block_query, block_key = place[query][1], place[key][1]
        if not query_clean:
            return block_key < block_query if key_clean else block_key == block_query
        return key_clean and block_key <= block_query

    halves = [(clean, at) for clean in (False, True) for at in range(length)]
    both = torch.tensor([[may(*query, *key) for key in halves] for query in halves])
    return both, both[length:, length:]


@settings(max_examples=30, deadline=None)
@given(
    pieces=st.lists(st.integers(1, 7), max_size=4),
    padding=st.integers(0, 3),
    block_size=st.integers(1, 9),
    one_document=st.booleans(),
)
def test_masks_follow_the_rules_pair_by_pair(pieces, padding, block_size, one_document):
    length = sum(pieces) + padding
    if not length:
        return
    documents = [
        0 if one_document else piece for piece, size in enumerate(pieces) for _ in range(size)
    ]
    positions = [at for size in pieces for at in range(size)]
    documents_BT = torch.tensor([documents + [-1] * padding])
    positions_BT = torch.tensor([positions + [0] * padding])
    blocks = find_blocks(documents_BT, positions_BT, block_size)
    both, clean = slow_masks(pieces, length, block_size)
    assert torch.equal(block_diffusion_mask(blocks).dense()[0, 0], both)
    assert torch.equal(block_causal_mask(blocks).dense()[0, 0], clean)


def test_blocks_restart_with_every_piece_and_the_last_may_be_short():
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]])
    documents = torch.tensor([[7, 7, 7, 7, 7, 9, 9, 9, -1, -1]])
    blocks = find_blocks(documents, positions, 2)
    assert blocks.block_BT.tolist() == [[0, 0, 1, 1, 2, 3, 3, 4, -1, -1]]
    assert blocks.piece_BT.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, -1, -1]]


def both_halves(model, batch, block_size, masked_BT=None):
    masked_BT = (
        torch.zeros_like(batch.tokens_BT, dtype=torch.bool) if masked_BT is None else masked_BT
    )
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, block_size)
    tokens, positions = noisy_and_clean(batch.tokens_BT, batch.positions_BT, masked_BT, MASK)
    logits = next_token_logits(model, tokens, positions, block_diffusion_mask(blocks))
    return logits.chunk(2, dim=1)


@torch.no_grad()
def test_blocks_of_one_token_are_the_autoregressive_model_in_both_halves(tiny_model, pack):
    model, batch = tiny_model(), pack([[5, 8], [11]], 13)
    mask = causal_document_mask(batch.document_ids_BT)
    expected = next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)
    real = batch.document_ids_BT >= 0
    for half in both_halves(model, batch, 1):
        torch.testing.assert_close(half[real], expected[real])


@torch.no_grad()
@pytest.mark.parametrize("block_size", [11, 64])
def test_a_block_as_long_as_the_document_is_the_bidirectional_model(tiny_model, pack, block_size):
    model, batch = tiny_model(), pack([[11]], 11)
    everything = AttentionRule(1, 11, torch.device("cpu"), lambda row, q, k: row + q + k >= 0)
    masked = torch.rand(1, 11, generator=torch.Generator().manual_seed(3)) < 0.5
    noisy, clean = both_halves(model, batch, block_size, masked)
    noisy_tokens = batch.tokens_BT.masked_fill(masked, MASK)
    for half, tokens in ((noisy, noisy_tokens), (clean, batch.tokens_BT)):
        expected = next_token_logits(model, tokens, batch.positions_BT, everything)
        torch.testing.assert_close(half, expected)


def block_by_block(model, tokens, masked, block_size):
    """Noisy logits of one document, a forward pass per block over clean blocks before it."""
    length, logits = tokens.shape[1], []
    for start in range(0, length, block_size):
        end = min(start + block_size, length)
        row = tokens[:, :end].clone()
        row[:, start:][masked[:, start:end]] = MASK
        positions = torch.arange(end)[None]
        blocks = find_blocks(torch.zeros_like(row), positions, block_size)
        mask = block_causal_mask(blocks)
        logits.append(next_token_logits(model, row, positions, mask)[:, start:])
    return torch.cat(logits, dim=1)


@torch.no_grad()
def test_one_pass_over_both_halves_equals_a_pass_per_block(tiny_model, pack):
    model, batch = tiny_model(), pack([[13]], 13)
    masked = torch.rand(1, 13, generator=torch.Generator().manual_seed(4)) < 0.6
    noisy, clean = both_halves(model, batch, 5, masked)
    torch.testing.assert_close(noisy, block_by_block(model, batch.tokens_BT, masked, 5))
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, 5)
    alone = next_token_logits(model, batch.tokens_BT, batch.positions_BT, block_causal_mask(blocks))
    torch.testing.assert_close(clean, alone)


def ternary(model):
    for module in list(model.get_decoder().layers.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.Linear):
                setattr(module, name, BitLinear.from_linear(child))
    return model


@torch.no_grad()
@pytest.mark.parametrize("scale", ["per token", "per tensor"])
def test_quantization_keeps_the_invariants_because_its_scales_are_per_token(
    tiny_model, pack, monkeypatch, scale
):
    if scale == "per tensor":
        whole = codes.quantize_activation

        def per_tensor(x):
            found, scale = whole(x.reshape(1, -1))
            return found.reshape(x.shape), scale.expand(*x.shape[:-1], 1)

        monkeypatch.setattr(codes, "quantize_activation", per_tensor)
    model, batch = ternary(tiny_model()), pack([[13]], 13)
    mask = causal_document_mask(batch.document_ids_BT)
    expected = next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)
    masked = torch.rand(1, 13, generator=torch.Generator().manual_seed(4)) < 0.6
    pairs = (
        (both_halves(model, batch, 1, masked)[1], expected),
        (
            both_halves(model, batch, 5, masked)[0],
            block_by_block(model, batch.tokens_BT, masked, 5),
        ),
    )
    for ours, oracle in pairs:
        assert torch.allclose(ours, oracle, atol=1e-6) == (scale == "per token")


@torch.no_grad()
@pytest.mark.parametrize("quantized", [False, True])
def test_editing_a_document_leaves_the_others_logits_as_they_were(tiny_model, pack, quantized):
    model, batch = tiny_model().float(), pack([[6, 9, 4]], 21)
    model = ternary(model) if quantized else model
    masked = torch.rand(1, 21, generator=torch.Generator().manual_seed(5)) < 0.5
    before = both_halves(model, batch, 4, masked)
    edited = batch.document_ids_BT == 1
    batch.tokens_BT[edited] = (batch.tokens_BT[edited] + 7) % MASK
    after = both_halves(model, batch, 4, masked)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[~edited], new[~edited])
        assert not torch.allclose(old[edited], new[edited])
