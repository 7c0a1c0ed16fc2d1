from __future__ import annotations

from dataclasses import fields, replace
from itertools import combinations, permutations
from math import comb, factorial

import pytest
import torch
from torch.nn import functional

from wrinklefree.diffusion.likelihood import draw_masks, masked_token_losses, negative_elbo
from wrinklefree.diffusion.masks import find_blocks
from wrinklefree.diffusion.shift import supervised_tokens
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import next_token_logits

MASK = 39


def blocks_of(batch, block_size, shift):
    """Numbers of the supervised tokens of each block of the only row."""
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, block_size)
    supervised = supervised_tokens(batch.tokens_BT, blocks, shift, MASK)
    numbers = blocks.block_BT[supervised].unique()
    return blocks, [
        (supervised & (blocks.block_BT == n))[0].nonzero()[:, 0].tolist() for n in numbers
    ]


def losses(model, batch, blocks, chosen, shift):
    masked = torch.zeros_like(batch.tokens_BT, dtype=torch.bool)
    masked[0, list(chosen)] = True
    return masked_token_losses(model, batch, blocks, masked, token_shift=shift, mask_token_id=MASK)[
        0
    ]


def enumerated(model, batch, block_size, shift):
    """The expectation of the estimate: every l, every subset of every block."""
    blocks, members = blocks_of(batch, block_size, shift)
    total = 0.0
    for block in members:
        size = len(block)
        for count in range(1, size + 1):
            for chosen in combinations(block, count):
                loss = losses(model, batch, blocks, chosen, shift).sum().item()
                total += loss * (size / count) / comb(size, count) / size
    return total


def over_all_orders(model, batch, block_size, shift):
    """Mean negative log-likelihood over all orders in which a block's tokens may be revealed."""
    blocks, members = blocks_of(batch, block_size, shift)
    total = 0.0
    for block in members:
        for order in permutations(block):
            for done in range(len(order)):
                loss = losses(model, batch, blocks, order[done:], shift)
                total += loss[order[done]].item() / factorial(len(order))
    return total


@pytest.mark.parametrize(
    ("block_size", "shift"),
    [(3, "none"), (3, "clean_boundary"), (2, "clean_boundary"), (4, "none")],
)
def test_the_estimate_is_unbiased_also_in_short_blocks(tiny_model, pack, block_size, shift):
    model, batch = tiny_model(), pack([[5, 4]], 10)
    exact = enumerated(model, batch, block_size, shift)
    assert exact == pytest.approx(over_all_orders(model, batch, block_size, shift), rel=1e-9)
    estimate = negative_elbo(
        model,
        batch,
        block_size=block_size,
        token_shift=shift,
        mask_token_id=MASK,
        draws=500,
        seed=7,
    )
    nats = estimate.nats_DBT.sum(2)[:, 0]
    assert abs(nats.mean().item() - exact) < 4 * nats.std().item() / len(nats) ** 0.5
    assert estimate.supervised_BT.sum(1).tolist() == [9 if shift == "none" else 7]


def test_every_count_of_masks_is_as_likely_and_weighs_inversely(pack):
    batch = pack([[3, 8]] * 600, 12)
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, 4)
    supervised = supervised_tokens(batch.tokens_BT, blocks, "noisy", MASK)
    masked, weight = draw_masks(blocks, supervised, [(0, row) for row in range(600)])
    assert not (masked & ~supervised).any()
    for block, size in ((0, 2), (1, 3), (2, 4)):
        inside = (blocks.block_BT == block) & supervised
        counts = (masked & inside).sum(1)
        assert inside.sum(1).unique().tolist() == [size]
        share = torch.bincount(counts, minlength=size + 1) / len(counts)
        assert share[0] == 0
        assert (share[1:] - 1 / size).abs().max() < 5 * (1 / size / len(counts)) ** 0.5
        torch.testing.assert_close(
            (weight * inside).sum(1), torch.full((600,), float(size)).double()
        )


@torch.no_grad()
@pytest.mark.parametrize("seed", [0, 1])
def test_untrained_clean_boundary_with_blocks_of_one_is_the_autoregressive_likelihood(
    tiny_model, pack, seed
):
    model, batch = tiny_model(seed), pack([[5, 6], [9]], 12, seed)
    mask = causal_document_mask(batch.document_ids_BT)
    logits = next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)[:, :-1]
    logits[..., MASK] = float("-inf")
    loss = functional.cross_entropy(logits.mT, batch.tokens_BT[:, 1:], reduction="none")
    asked = (batch.positions_BT > 0)[:, 1:]
    settings = {"block_size": 1, "mask_token_id": MASK, "draws": 2, "seed": 0}
    estimate = negative_elbo(model, batch, token_shift="clean_boundary", **settings)
    for nats_B in estimate.nats_DBT.sum(2):
        torch.testing.assert_close(nats_B, (loss * asked).sum(1))
    assert torch.equal(estimate.supervised_BT[:, 1:], asked)
    assert not estimate.supervised_BT[:, 0].any()
    other = negative_elbo(model, batch, token_shift="noisy", **settings)
    assert not torch.allclose(other.nats_DBT, estimate.nats_DBT)


def test_the_estimate_is_keyed_by_seed_draw_and_sample(tiny_model, pack):
    model, batch = tiny_model(), pack([[9, 3], [12], [12]], 12)
    settings = {"block_size": 4, "token_shift": "none", "mask_token_id": MASK}
    whole = negative_elbo(model, batch, **settings, draws=3, seed=1)
    last = Batch(*(getattr(batch, field.name)[2:] for field in fields(batch)))
    part = negative_elbo(model, last, **settings, draws=2, seed=1)
    torch.testing.assert_close(part.nats_DBT, whole.nats_DBT[:2, 2:])
    assert len(set(whole.nats_DBT.sum(2)[:, 2].tolist())) == 3
    other = negative_elbo(model, batch, **settings, draws=3, seed=2)
    assert not torch.allclose(other.nats_DBT, whole.nats_DBT)


def test_rows_of_two_domains_have_masks_of_their_own(tiny_model, pack):
    """Held-out rows are counted in each domain from 0."""
    model, batch = tiny_model(0), pack([[12]], 12)
    batches = [replace(batch, domain_B=batch.domain_B + number) for number in (0, 0, 1)]
    masks = [
        negative_elbo(
            model, each, block_size=12, token_shift="none", mask_token_id=MASK, draws=8, seed=7
        ).nats_DBT
        > 0
        for each in batches
    ]
    assert torch.equal(masks[0], masks[1])
    assert not any(map(torch.equal, masks[0], masks[2]))
