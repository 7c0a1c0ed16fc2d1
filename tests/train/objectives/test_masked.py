from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from asking import evaluate

from wrinklefree.models.factorized import factorize, words_of
from wrinklefree.train.objectives.masked import MaskedTokens
from wrinklefree.train.objectives.objective import Objective, TrainStep

MASK = 39
SIZES = (5, 4, 3)


def objective_with(mask_token_id=MASK, **changes):
    return Objective(MaskedTokens(mask_token_id, **{"context": 2, "seed": 3, **changes}))


@torch.no_grad()
def slow_logits(model, batch, masked_BT, mask_token_id):
    """Of every token, in rows that are read one document at a time."""
    noisy_BT = torch.where(masked_BT, mask_token_id, batch.tokens_BT)
    logits = {}
    for row, documents in enumerate(batch.document_ids_BT.tolist()):
        for document in set(documents) - {-1}:
            places = [place for place, found in enumerate(documents) if found == document]
            found = model(
                noisy_BT[row : row + 1, places],
                position_ids=batch.positions_BT[row : row + 1, places],
                attention_mask=torch.ones(1, 1, len(places), len(places), dtype=torch.bool),
            ).logits[0]
            logits |= {(row, place): found[at] for at, place in enumerate(places)}
    return logits


@pytest.mark.parametrize("factorized", [False, True])
def test_the_loss_follows_its_definition(tiny_model, pack, factorized):
    model, batch, mask = tiny_model(), pack([[9, 1, 6], [5, 8]], 17), MASK
    sizes = (MASK + 1,)
    if factorized:
        sizes, mask = SIZES, 60
        factorize(model, SIZES, embedding=1.0, head=0.3, seed=1)
        model.double()
    prepared, output = evaluate(objective_with(mask), model, batch, step=4)
    logits = slow_logits(model, batch, prepared.masked_BT, mask)
    rows, words = [0.0, 0.0], words_of(batch.tokens_BT, sizes)
    for row, place in prepared.masked_BT.nonzero().tolist():
        part = logits[row, place].clone()
        if not factorized:
            part[MASK] = float("-inf")  # it is no answer
        for of_word, word in zip(part.split(sizes), words[row, place], strict=True):
            rows[row] -= of_word.log_softmax(-1)[word].item()
    count = prepared.masked_BT.sum().item()
    assert output.loss.item() == pytest.approx(sum(rows) / count, rel=1e-6)
    torch.testing.assert_close(output.row_loss_B, torch.tensor(rows, dtype=torch.float64))
    assert torch.equal(output.row_tokens_B, prepared.masked_BT.sum(1))


def test_every_setting_changes_the_loss(tiny_model, pack):
    model, batch = tiny_model(), pack([[9, 6], [5, 8]], 17)
    objectives = [objective_with(), objective_with(context=3), objective_with(seed=4)]
    losses = [evaluate(one, model, batch)[1].loss.item() for one in objectives]
    losses.append(evaluate(objective_with(), model, batch, step=1)[1].loss.item())
    losses.append(evaluate(objective_with(mask_token_id=38), model, batch)[1].loss.item())
    assert len(set(losses)) == len(losses)


def test_the_context_of_every_document_and_padding_are_never_masked(pack):
    batch = pack([[9, 1, 6], [5, 8]], 17)
    for step in range(50):
        prepared = objective_with().corruption.prepare(batch, step)
        given = (batch.positions_BT < 2) | (batch.document_ids_BT < 0)
        assert torch.equal(prepared.supervised_BT, ~given)
        assert not (prepared.masked_BT & given).any()


def hidden_of(model, batch, masked_BT):
    objective = objective_with()
    prepared = replace(objective.corruption.prepare(batch, 0), masked_BT=masked_BT)
    return TrainStep(model, objective)(prepared).hidden_ND


def test_what_is_masked_is_unseen_and_what_is_given_is_seen_from_both_sides(tiny_model, pack):
    model, batch = tiny_model(), pack([[9, 7]], 17)
    masked = torch.zeros(1, 17, dtype=torch.bool)
    masked[0, [4, 6]] = True
    before = hidden_of(model, batch, masked)
    for place, seen in ((4, False), (6, False), (2, True), (8, True), (12, False), (16, False)):
        tokens = batch.tokens_BT.clone()
        tokens[0, place] = (tokens[0, place] + 1) % MASK
        after = hidden_of(model, replace(batch, tokens_BT=tokens), masked)
        assert torch.equal(after, before) != seen, place
