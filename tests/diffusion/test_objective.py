from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from wrinklefree.diffusion.corruption import complement, corrupt
from wrinklefree.diffusion.masks import find_blocks
from wrinklefree.diffusion.objective import (
    loss_denominator,
    loss_weights,
    noisy_and_clean,
)
from wrinklefree.models.forward import without_mask_token


def test_noise_touches_the_first_half_only_and_positions_repeat():
    tokens, positions = torch.tensor([[3, 9, 5]]), torch.tensor([[0, 1, 0]])
    masked = torch.tensor([[False, False, True]])
    both, places = noisy_and_clean(tokens, positions, masked, 9)
    assert both.tolist() == [[3, 9, 9, 3, 9, 5]]
    assert places.tolist() == [[0, 1, 0, 0, 1, 0]]


def test_the_mask_token_takes_no_probability_and_no_gradient():
    logits = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 4, 5, 6])
    loss = cross_entropy(without_mask_token(logits, 3), targets, reduction="none")
    kept = torch.cat([logits[:, :3], logits[:, 4:]], dim=1).log_softmax(-1)
    expected = -kept[torch.arange(6), targets - (targets > 3).long()]
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert torch.equal(logits.grad[:, 3], torch.zeros(6, dtype=torch.float64))
    assert without_mask_token(logits.bfloat16(), 3).dtype == torch.float32
    assert torch.equal(without_mask_token(logits, 7), logits)


@pytest.fixture
def views(pack):
    batch = pack([[11, 6], [17]], 17)
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, 4)
    supervised = batch.positions_BT > 0

    def draw(step):
        view = corrupt(blocks, supervised, batch.sample_B, seed=1, step=step)
        return (view, complement(view, supervised)), supervised

    return draw


def test_elbo_counts_every_token_once_on_average_in_either_view(views):
    totals = []
    for step in range(3000):
        pair, supervised = views(step)
        totals.append([loss_weights(view, "elbo").sum().item() for view in pair])
    totals = torch.tensor(totals, dtype=torch.float64)
    error = totals.std(0) / len(totals) ** 0.5
    assert ((totals.mean(0) - supervised.sum()).abs() < 4 * error + 1e-3 * supervised.sum()).all()
    assert loss_denominator(pair, supervised, "elbo") == 2 * supervised.sum()
    assert loss_denominator(pair[:1], supervised, "elbo") == supervised.sum()


def test_unit_divides_by_the_tokens_that_have_a_loss(views):
    pair, supervised = views(0)
    assert loss_denominator(pair, supervised, "unit") == supervised.sum()
    assert loss_denominator(pair[:1], supervised, "unit") == pair[0].masked_BT.sum()
    assert torch.equal(loss_weights(pair[0], "unit"), pair[0].masked_BT.float())
