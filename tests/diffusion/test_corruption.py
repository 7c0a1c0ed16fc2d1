from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from wrinklefree.diffusion.corruption import (
    EPSILON,
    Corruption,
    complement,
    corrupt,
    cosine_masks,
    cosine_rate,
)
from wrinklefree.diffusion.masks import Blocks, find_blocks


def rows_of(batch, chosen):
    return batch.document_ids_BT[chosen], batch.positions_BT[chosen], batch.sample_B[chosen]


def draw(batch, *, chosen=slice(None), seed=5, step=3, block_size=4):
    documents, positions, samples = rows_of(batch, chosen)
    blocks = find_blocks(documents, positions, block_size)
    supervised = (documents >= 0) & (positions > 0)
    return corrupt(blocks, supervised, samples, seed=seed, step=step), supervised


def test_masks_depend_on_the_sample_and_not_on_its_micro_batch(pack):
    batch = pack([[9, 7], [17], [3, 3, 3], [1, 12]], 17)
    whole, _ = draw(batch)
    for chosen in (slice(0, 1), slice(1, 4), [2, 0, 3]):
        part, _ = draw(batch, chosen=chosen)
        assert torch.equal(part.masked_BT, whole.masked_BT[chosen])
        assert torch.equal(part.probability_BT, whole.probability_BT[chosen])


def test_masks_change_with_seed_step_and_sample(pack):
    batch = pack([[64], [64]], 64)
    first, _ = draw(batch)
    for other in (draw(batch, seed=6)[0], draw(batch, step=4)[0]):
        assert not torch.equal(first.masked_BT, other.masked_BT)
        assert not torch.equal(first.probability_BT, other.probability_BT)
    assert not torch.equal(first.masked_BT[0], first.masked_BT[1])
    again, _ = draw(batch)
    assert torch.equal(first.masked_BT, again.masked_BT)


def test_masks_are_the_same_on_every_machine(pack):
    corruption, _ = draw(pack([[16]], 16), seed=1, step=2)
    assert corruption.masked_BT[0].nonzero().flatten().tolist() == [1, 8, 10]


def test_only_supervised_tokens_are_masked(pack):
    batch = pack([[9, 1, 4], [5]], 17)
    for step in range(50):
        corruption, supervised = draw(batch, step=step)
        assert not (corruption.masked_BT & ~supervised).any()
        other = complement(corruption, supervised)
        assert torch.equal(corruption.masked_BT ^ other.masked_BT, supervised)
        total = corruption.probability_BT + other.probability_BT
        torch.testing.assert_close(
            total[supervised], torch.ones_like(total[supervised]), atol=1e-3, rtol=0
        )


@pytest.mark.parametrize("block_size", [1, 3, 8])
def test_every_block_has_a_stratum_of_its_own(pack, block_size):
    batch = pack([[9, 7]], 17)
    corruption, supervised = draw(batch, block_size=block_size)
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, block_size)
    times = []
    for block in blocks.block_BT[supervised].unique():
        inside = supervised & (blocks.block_BT == block)
        probability = corruption.probability_BT[inside].unique()
        assert len(probability) == 1
        times.append((probability.item() - EPSILON) / (1 - EPSILON))
    strata = np.floor(np.array(times) * len(times)).astype(int)
    assert sorted(strata) == list(range(len(times)))


def test_times_are_uniform_and_masks_follow_them():
    rows, length = 400, 24
    places = torch.arange(length).expand(rows, length)
    blocks = Blocks(torch.zeros_like(places), places // 6)
    supervised = torch.ones(rows, length, dtype=torch.bool)
    corruption = corrupt(blocks, supervised, torch.arange(rows), seed=0, step=0)
    probability = corruption.probability_BT.double()
    for block in range(4):
        time = (probability[:, 6 * block] - EPSILON) / (1 - EPSILON)
        assert abs(time.mean() - 1 / 2) < 5 * (1 / 12 / rows) ** 0.5
        assert abs(time.square().mean() - 1 / 3) < 5 * (4 / 45 / rows) ** 0.5
    excess = corruption.masked_BT.double() - probability
    error = (probability * (1 - probability)).sum().sqrt()
    assert abs(excess.sum()) < 5 * error
    # Within a block, masks are independent given p: the product of two excesses has mean 0.
    products = excess[:, 0::6] * excess[:, 1::6]
    assert abs(products.mean()) < 5 * products.std() / products.numel() ** 0.5


def test_cosine_masks_depend_on_seed_step_and_sample_and_not_on_the_micro_batch():
    maskable = torch.arange(40).expand(6, 40) >= torch.arange(6)[:, None]
    samples = torch.arange(6) + 100
    masks = cosine_masks(maskable, samples, seed=5, step=3)
    assert not (masks & ~maskable).any() and masks.any(1).all()
    for chosen in (slice(0, 1), slice(1, 4), [2, 0, 3]):
        part = cosine_masks(maskable[chosen], samples[chosen], seed=5, step=3)
        assert torch.equal(part, masks[chosen])
    for other in ((samples, 6, 3), (samples, 5, 4), (samples + 1, 5, 3)):
        rows, seed, step = other
        assert not torch.equal(cosine_masks(maskable, rows, seed=seed, step=step), masks)


def test_shares_of_masked_tokens_follow_the_cosine_and_places_are_even():
    rows, length = 2000, 500
    maskable = torch.ones(rows, length, dtype=torch.bool)
    maskable[:, :100] = False
    masks = cosine_masks(maskable, torch.arange(rows), seed=0, step=0)
    share = masks.sum(1).double().sort().values / 400
    # Of cos(pi u / 2) with u uniform: P(share < x) = (2 / pi) arcsin(x). Kolmogorov-Smirnov, at a
    # level of 1e-6; rounding up moves a share by 1 / 400 at most, its probability by 1 / 30.
    expected = 2 / math.pi * (share - 1 / 800).asin()
    distance = (expected - (torch.arange(rows) + 0.5) / rows).abs().max()
    assert distance < 2.7 / rows**0.5
    deviation = (0.5 - 4 / math.pi**2) ** 0.5
    assert abs(share.mean() - 2 / math.pi - 1 / 800) < 5 * deviation / rows**0.5
    places = masks[:, 100:].double().mean(0)
    assert (places - places.mean()).abs().max() < 5 * 0.5 / rows**0.5
    assert (cosine_rate(0), round(cosine_rate(1), 12)) == (1, 0)


def test_of_a_few_maskable_tokens_at_least_one_is_masked():
    for count in (1, 2, 3):
        masks = cosine_masks(
            torch.ones(300, count, dtype=torch.bool), torch.arange(300), seed=0, step=0
        )
        assert masks.any(1).all()


def test_the_other_view_of_a_block_that_is_all_masked_has_the_least_probability(pack):
    supervised = torch.ones(1, 3, dtype=torch.bool)
    whole = Corruption(supervised, torch.ones(1, 3))
    other = complement(whole, supervised)
    assert not other.masked_BT.any()
    torch.testing.assert_close(other.probability_BT, torch.full((1, 3), EPSILON))


def test_a_row_without_maskable_tokens_keeps_all():
    maskable = torch.tensor([[False] * 5, [True] * 5])
    masks = cosine_masks(maskable, torch.arange(2), seed=0, step=0)
    assert masks.any(1).tolist() == [False, True]
