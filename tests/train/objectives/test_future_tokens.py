from __future__ import annotations

from typing import Any

import pytest
import torch
from asking import evaluate
from torch import nn
from torch.nn import functional

from wrinklefree.kernels.sum_by_blocks import sum_by_blocks
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import hidden_states, logits_of
from wrinklefree.models.future_heads import attach_future_heads, future_heads, future_states
from wrinklefree.train.future_tokens_settings import FutureTokensSettings
from wrinklefree.train.objectives import future_tokens
from wrinklefree.train.objectives.future_tokens import with_future_tokens
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import CROSS_ENTROPY, Objective

ROWS = [[13, 1], [2], [4, 5, 4], [3, 3]]


def model_with_heads(tiny_model: Any, count: int) -> Any:
    model = tiny_model()
    attach_future_heads(model, count)
    for head in future_heads(model):
        nn.init.normal_(head.get_parameter("weight"), std=0.3)
    return model


def objective_of(weight: float = 0.5) -> Objective:
    settings = FutureTokensSettings(heads=2, weight=weight)
    return with_future_tokens(Objective(NextToken()), settings)


def slow_losses(model: Any, batch: Any) -> torch.Tensor:
    """Of each head, token by token; over the number of all tokens that have one before them."""
    mask = causal_document_mask(batch.document_ids_BT)
    hidden = hidden_states(model, batch.tokens_BT, batch.positions_BT, mask)
    documents, length = batch.document_ids_BT, batch.tokens_BT.shape[1]
    sums, count = [hidden.new_zeros(()) for _ in future_heads(model)], 0
    for row, place in batch.has_predecessor_BT.nonzero().tolist():
        count += 1
        for k, head in enumerate(future_heads(model), start=1):
            if place + k < length and documents[row, place + k] == documents[row, place]:
                logits = logits_of(model, future_states(head, hidden[row, [place - 1]]))
                target = batch.tokens_BT[row, [place + k]]
                sums[k - 1] = sums[k - 1] + functional.cross_entropy(logits, target)
    return torch.stack(sums) / count


def test_each_head_learns_the_token_so_many_places_behind_the_next(
    tiny_model: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = model_with_heads(tiny_model, 2), pack(ROWS, 14)
    monkeypatch.setattr(future_tokens, "tokens_at_once", lambda vocabulary: 3)
    calls: list[int] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(named["rows"])
        return sum_by_blocks(*arguments, **named)

    monkeypatch.setattr(future_tokens, "sum_by_blocks", counted)
    _, output = evaluate(objective_of(), model, batch)
    plain = evaluate(Objective(NextToken()), model, batch)[1].loss
    expected = slow_losses(model, batch)
    assert calls == [sum(max(n - 2, 0) for row in ROWS for n in row),
                     sum(max(n - 3, 0) for row in ROWS for n in row)]  # fmt: skip
    found = [output.terms[f"future_tokens/loss_{k}"] for k in (1, 2)]
    torch.testing.assert_close(torch.stack(found), expected.detach())
    torch.testing.assert_close(output.terms["train/future_tokens"], expected.mean().detach())
    torch.testing.assert_close(output.loss, plain + 0.5 * expected.mean())
    gradients = []
    for loss in (output.loss - plain, 0.5 * expected.mean()):
        model.zero_grad()
        loss.backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert gradients[0]["model.layers.0.mlp.up_proj.weight"].norm() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_the_next_token_alone_asks_no_head(tiny_model: Any, pack: Any) -> None:
    model, batch = model_with_heads(tiny_model, 2), pack(ROWS, 14)
    alone = evaluate(objective_of().alone(CROSS_ENTROPY), model, batch)[1]
    assert alone.loss == evaluate(Objective(NextToken()), model, batch)[1].loss
    assert not alone.terms


def test_without_heads_nothing_is_added() -> None:
    objective = Objective(NextToken())
    assert with_future_tokens(objective, FutureTokensSettings()) is objective
