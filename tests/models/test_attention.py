from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from wrinklefree.diffusion.masks import block_causal_mask, block_diffusion_mask, find_blocks
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import (
    FLEX,
    AttentionRule,
    causal_document_mask,
    document_mask,
)
from wrinklefree.models.forward import hidden_states


@pytest.mark.parametrize("rule", [causal_document_mask, document_mask])
def test_a_token_sees_its_document_or_the_past_of_it_and_always_itself(
    rule: Callable[[torch.Tensor], AttentionRule],
) -> None:
    ids = torch.randint(-1, 3, (5, 63)).sort(dim=1).values.roll(7, dims=1)
    mask = rule(ids).dense()
    assert mask.dtype == torch.bool
    assert mask.shape == (5, 1, 63, 63)
    for row in range(5):
        for query in range(63):
            for key in range(63):
                sees = key <= query or rule is document_mask
                expected = sees and ids[row, key] == ids[row, query]
                assert mask[row, 0, query, key].item() == bool(expected)
    assert mask.diagonal(dim1=2, dim2=3).all()


def rules(batch: Batch) -> dict[str, AttentionRule]:
    blocks = find_blocks(batch.document_ids_BT, batch.positions_BT, 4)
    return {
        "causal": causal_document_mask(batch.document_ids_BT),
        "document": document_mask(batch.document_ids_BT),
        "diffusion": block_diffusion_mask(blocks),
        "block causal": block_causal_mask(blocks),
    }


@pytest.mark.parametrize("name", ["causal", "document", "diffusion", "block causal"])
@pytest.mark.filterwarnings("ignore:.*flex_attention called without:UserWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_flex_attention_and_sdpa_read_the_same_rule(
    tiny: Callable[..., PreTrainedModel], batch: Callable[..., Batch], name: str
) -> None:
    model, one = tiny(), batch(rows=3)
    rule = rules(one)[name]
    times = rule.tokens // one.tokens_BT.shape[1]
    inputs = one.tokens_BT.repeat(1, times), one.positions_BT.repeat(1, times)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = hidden_states(model, *inputs, rule)
        model.set_attn_implementation(FLEX)
        torch.testing.assert_close(hidden_states(model, *inputs, rule), expected)
        every = AttentionRule(rule.rows, rule.tokens, rule.device, lambda r, q, k: r + q + k >= 0)
        assert not torch.allclose(hidden_states(model, *inputs, every), expected, atol=1e-3)
