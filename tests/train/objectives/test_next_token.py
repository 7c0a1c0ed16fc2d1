from __future__ import annotations

import torch
from asking import evaluate
from torch.nn import functional

from wrinklefree.models.attention import AttentionRule
from wrinklefree.models.forward import next_token_logits
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective


def test_packed_rows_lose_what_their_documents_lose_alone(tiny_model, pack):
    model, objective = tiny_model(), Objective(NextToken())
    rows = [[5, 1, 6], [12], [2]]
    batch = pack(rows, 13)
    expected = []
    for row, pieces in enumerate(rows):
        start, total = 0, 0.0
        for size in pieces:
            tokens = batch.tokens_BT[row : row + 1, start : start + size]
            logits = model(tokens, use_cache=False).logits[0]
            total += functional.cross_entropy(logits[:-1], tokens[0, 1:], reduction="sum").item()
            start += size
        expected.append(total)
    prepared, output = evaluate(objective, model, batch)
    torch.testing.assert_close(output.row_loss_B, torch.tensor(expected, dtype=torch.float64))
    assert output.row_tokens_B.tolist() == [9, 11, 1]
    assert objective.corruption.denominator(prepared) == 21
    torch.testing.assert_close(output.loss.item(), sum(expected) / 21)


def test_the_head_runs_on_supervised_rows_only(tiny_model, pack):
    model, objective, seen = tiny_model(), Objective(NextToken()), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    evaluate(objective, model, pack([[5, 2], [3]], 13))
    assert seen == [4 + 1 + 2]


def test_padding_and_other_documents_do_not_matter(tiny_model, pack):
    model, objective = tiny_model(), Objective(NextToken())
    batch = pack([[5, 6], [4, 3]], 13)
    before = evaluate(objective, model, batch)[1].row_loss_B
    batch.tokens_BT[0, 11:] = 3
    batch.tokens_BT[1] = 8
    after = evaluate(objective, model, batch)[1].row_loss_B
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_labels_are_the_next_tokens_of_the_same_row(tiny_model, pack):
    model, objective, batch = tiny_model(), Objective(NextToken()), pack([[13]], 13)
    mask = AttentionRule(1, 13, torch.device("cpu"), lambda row, query, key: row + key <= query)
    logits = next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)
    expected = model.loss_function(logits, batch.tokens_BT, vocab_size=40)
    loss = evaluate(objective, model, batch)[1].loss
    torch.testing.assert_close(loss.float(), expected.float())
