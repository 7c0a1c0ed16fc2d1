from __future__ import annotations

import torch

from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import next_token_logits
from wrinklefree.train.objectives.rows import hidden_states, logits_of, sum_by_row


def test_selected_rows_have_the_models_own_logits(tiny_model, pack):
    model, batch = tiny_model(), pack([[7, 4]], 12)
    mask = causal_document_mask(batch.document_ids_BT)
    whole = next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)
    hidden = hidden_states(model, batch.tokens_BT, batch.positions_BT, mask)
    torch.testing.assert_close(logits_of(model, hidden[0, [2, 9]]), whole[0, [2, 9]])


def test_logits_are_at_least_float32(tiny_model):
    model = tiny_model()
    assert logits_of(model, torch.zeros(1, 64, dtype=torch.float64)).dtype == torch.float64
    assert logits_of(model.bfloat16(), torch.zeros(1, 64).bfloat16()).dtype == torch.float32


def test_rows_without_values_sum_to_zero():
    sums = sum_by_row(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 2]), 4)
    assert sums.tolist() == [2.0, 0.0, 5.0, 0.0]
