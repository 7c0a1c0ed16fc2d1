from __future__ import annotations

import pytest
import torch
from asking import evaluate

from wrinklefree.diffusion.masks import block_diffusion_mask, find_blocks
from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import next_token_logits
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.objective import Objective

MASK = 39
DEFAULT = {
    "block_size": 4,
    "mask_init": "mean",
    "token_shift": "clean_boundary",
    "loss_weighting": "unit",
    "complementary_masks": True,
}


def objective_with(seed=3, **changes):
    return Objective(BlockDiffusion(DiffusionSettings(**{**DEFAULT, **changes}), MASK, seed))


@torch.no_grad()
def slow_loss(model, prepared, settings):
    """Token by token, from the logits of the whole input."""
    batch, length = prepared.batch, prepared.batch.tokens_BT.shape[1]
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, settings.block_size)
    rows_loss, total, count = [0.0] * len(batch.tokens_BT), 0.0, 0
    for view in prepared.views:
        noisy = torch.where(view.masked_BT, MASK, batch.tokens_BT)
        logits = next_token_logits(
            model,
            torch.cat([noisy, batch.tokens_BT], 1),
            batch.positions_BT.repeat(1, 2),
            block_diffusion_mask(blocks),
        )
        logits[..., MASK] = float("-inf")
        for row, token in view.masked_BT.nonzero().tolist():
            place = batch.positions_BT[row, token].item()
            at = token if settings.token_shift == "none" else token - 1
            if settings.token_shift == "clean_boundary" and place % settings.block_size == 0:
                at += length
            loss = -logits[row, at].log_softmax(-1)[batch.tokens_BT[row, token]].item()
            elbo = settings.loss_weighting == "elbo"
            total += loss / view.probability_BT[row, token].item() if elbo else loss
            rows_loss[row] += loss
            count += 1
    supervised = prepared.supervised_BT.sum().item() * len(prepared.views)
    return total / (supervised if settings.loss_weighting == "elbo" else count), rows_loss


SETTINGS = [
    {},
    {"block_size": 3},
    {"token_shift": "noisy"},
    {"token_shift": "none"},
    {"loss_weighting": "elbo"},
    {"complementary_masks": False},
    {"complementary_masks": False, "loss_weighting": "elbo", "token_shift": "none"},
]


@pytest.mark.parametrize("changes", SETTINGS, ids=str)
def test_the_loss_follows_its_definition(tiny_model, pack, changes):
    model, objective = tiny_model(), objective_with(**changes)
    prepared, output = evaluate(objective, model, pack([[9, 1, 6], [5, 8]], 17), step=4)
    loss, rows = slow_loss(model, prepared, objective.corruption.settings)
    assert output.loss.item() == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(output.row_loss_B, torch.tensor(rows, dtype=torch.float64))
    masked = sum(view.masked_BT.sum(1) for view in prepared.views)
    assert torch.equal(output.row_tokens_B, masked)


def test_every_setting_changes_the_loss(tiny_model, pack):
    model, batch = tiny_model(), pack([[9, 1, 6], [5, 8]], 17)
    losses = [
        evaluate(objective_with(**changes), model, batch)[1].loss.item() for changes in SETTINGS
    ]
    losses.append(evaluate(objective_with(seed=4), model, batch)[1].loss.item())
    losses.append(evaluate(objective_with(), model, batch, step=1)[1].loss.item())
    assert len(set(losses)) == len(losses)


def test_complementary_views_mask_every_supervised_token_once(pack):
    batch = pack([[9, 1, 6], [5, 8]], 17)
    two = objective_with().corruption.prepare(batch, 0)
    assert torch.equal(two.views[0].masked_BT ^ two.views[1].masked_BT, two.supervised_BT)
    one = objective_with(complementary_masks=False).corruption.prepare(batch, 0)
    assert len(one.views) == 1
    assert torch.equal(one.views[0].masked_BT, two.views[0].masked_BT)


def test_untrained_clean_boundary_with_blocks_of_one_is_the_autoregressive_loss(tiny_model, pack):
    model, batch = tiny_model(), pack([[9, 1, 6], [5, 8]], 17)
    _, output = evaluate(objective_with(block_size=1), model, batch)
    mask = causal_document_mask(batch.document_ids_BT)
    logits = next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)[:, :-1]
    logits[..., MASK] = float("-inf")
    loss = torch.nn.functional.cross_entropy(logits.mT, batch.tokens_BT[:, 1:], reduction="none")
    torch.testing.assert_close(output.loss, loss[(batch.positions_BT > 0)[:, 1:]].mean())


def test_a_mask_token_in_the_text_is_context_and_no_target(tiny_model, pack):
    batch = pack([[12]], 12)
    batch.tokens_BT[0, 5] = MASK
    prepared, output = evaluate(objective_with(), tiny_model(), batch)
    assert not any(view.masked_BT[0, 5] for view in prepared.views)
    assert output.row_tokens_B.tolist() == [10]
    assert output.loss.isfinite()


def test_a_micro_batch_without_a_target_adds_nothing(tiny_model, pack):
    model, objective = tiny_model(), objective_with()
    prepared, output = evaluate(objective, model, pack([[1, 1], []], 6), denominator=10.0)
    assert objective.corruption.denominator(prepared) == 0
    output.loss.backward()
    assert output.loss == 0
    assert output.row_loss_B.tolist() == [0, 0]
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_the_head_runs_on_masked_tokens_only(tiny_model, pack):
    model, seen = tiny_model(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    evaluate(objective_with(), model, pack([[9, 1, 6]], 17))
    assert seen == [8 + 5]
