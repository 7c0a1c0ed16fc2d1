from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from wrinklefree.diffusion.masks import block_causal_mask, block_diffusion_mask, find_blocks
from wrinklefree.mixture.batch import Batch
from wrinklefree.models import attention
from wrinklefree.models.attention import (
    FLEX,
    AttentionRule,
    causal_document_mask,
    document_mask,
)
from wrinklefree.models.attention_by_blocks import _attend, attend_by_blocks
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


NAMES = ["causal", "document", "diffusion", "block causal"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_attention_by_blocks_is_that_over_all_pairs(
    tiny: Callable[..., PreTrainedModel],
    batch: Callable[..., Batch],
    name: str,
    checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "QUERIES", 16)
    model, one = tiny().double().train(), batch(rows=3, length=63)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    rule = rules(one)[name]
    times = rule.tokens // one.tokens_BT.shape[1]
    inputs = one.tokens_BT.repeat(1, times), one.positions_BT.repeat(1, times)
    weights = [p for n, p in model.named_parameters() if "lm_head" not in n]
    found = []
    for chosen in (False, True):
        if chosen:
            attend_by_blocks(model)
        hidden = hidden_states(model, *inputs, rule)
        scalar = (hidden * torch.arange(hidden.shape[-1]).sin()).square().sum()
        found.append([hidden, *torch.autograd.grad(scalar, weights)])
    for actual, expected in zip(*reversed(found), strict=True):
        assert (actual - expected).norm() <= 1e-13 * expected.norm()


def test_attention_by_blocks_computes_in_what_autocast_says_and_leaves_keys_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "QUERIES", 16)
    documents_BT = torch.tensor([[0] * 20 + [1] * 43, [3] * 30 + [4] * 33])
    rule = causal_document_mask(documents_BT)
    assert [(keys.start, keys.stop) for _, keys in rule.spans] == [
        (0, 16),
        (0, 32),
        (20, 48),
        (20, 63),
    ]
    query, key, value = (torch.randn(2, count, 63, 16) for count in (4, 2, 2))
    module: Any = SimpleNamespace(num_key_value_groups=2)
    with torch.autocast("cpu", torch.bfloat16):
        # A mask of all pairs goes to sdpa.
        output, expected = (
            _attend(module, query, key, value, mask, scaling=0.3)[0]
            for mask in (rule.unmade(), rule.dense())
        )
    assert output.dtype == expected.dtype == torch.bfloat16
    assert output.is_contiguous()
    torch.testing.assert_close(output, expected, rtol=0.02, atol=1e-3)


def test_a_model_that_attends_by_blocks_generates_as_before(
    tiny: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "QUERIES", 4)
    model: Any = tiny()
    prompt = torch.randint(1, 97, (2, 9))
    padded = torch.ones_like(prompt)
    padded[0, :3] = 0
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    expected = model.generate(prompt, attention_mask=padded, **settings)
    attend_by_blocks(model)
    assert torch.equal(model.generate(prompt, attention_mask=padded, **settings), expected)


@pytest.mark.parametrize("name", NAMES)
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
