from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import AttentionRule, causal_document_mask
from wrinklefree.models.forward import (
    hidden_states,
    logits_of,
    next_token_logits,
    require_embeddings,
)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_packed_documents_have_the_logits_they_have_alone(
    tiny: Callable[..., PreTrainedModel], batch: Callable[..., Batch], family: str
) -> None:
    model, packed = tiny(family).double(), batch()
    with torch.no_grad():
        logits = next_token_logits(
            model,
            packed.tokens_BT,
            packed.positions_BT,
            causal_document_mask(packed.document_ids_BT),
        )
        assert logits.isfinite().all()
        for row in range(packed.tokens_BT.shape[0]):
            for document in (0, 1):
                inside = packed.document_ids_BT[row] == document
                alone = model(input_ids=packed.tokens_BT[row, inside][None]).logits[0]
                # Norms compute in float32 whatever the model's dtype.
                torch.testing.assert_close(logits[row, inside], alone, atol=1e-5, rtol=1e-5)


def test_the_mask_is_used_as_given_and_nothing_causal_is_added(
    tiny: Callable[..., PreTrainedModel], batch: Callable[..., Batch]
) -> None:
    model, one = tiny(), batch(rows=1)
    everything = AttentionRule(1, 33, torch.device("cpu"), lambda row, q, k: row + q + k >= 0)
    edited = one.tokens_BT.clone()
    edited[0, -1] = (edited[0, -1] + 1) % 97
    before, after = (
        next_token_logits(model, tokens, one.positions_BT, everything)[0, 0]
        for tokens in (one.tokens_BT, edited)
    )
    assert not torch.allclose(before, after)


def test_an_embedding_may_be_larger_than_the_vocabulary_and_not_smaller(
    tiny: Callable[..., PreTrainedModel],
) -> None:
    for vocabulary in (90, 97):
        require_embeddings(tiny(), vocabulary)
    with pytest.raises(UserError, match="ids up to 97, but the model's embedding ends at 96"):
        require_embeddings(tiny(), 98)


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
