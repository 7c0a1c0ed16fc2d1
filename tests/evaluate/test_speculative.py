from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from wrinklefree.evaluate.generate import decode_greedily
from wrinklefree.evaluate.speculative import decode_speculatively
from wrinklefree.models.future_heads import attach_future_heads, future_heads
from wrinklefree.models.surgery import insert_bitlinear, insert_subln

PROMPT = [5, 3, 17, 4]


def experts() -> Any:
    config = Qwen3MoeConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, initializer_range=0.3, attn_implementation="sdpa",
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation("eager")
    return model.double().eval()


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("family", ["llama", "experts"])
@pytest.mark.parametrize("heads", [1, 3])
def test_tokens_are_those_of_greedy_decoding(
    tiny_model: Any, family: str, ternary: bool, heads: int
) -> None:
    model = tiny_model() if family == "llama" else experts()
    model.lm_head.weight = model.model.embed_tokens.weight  # so that some tokens repeat
    if ternary:
        insert_subln(model)
        insert_bitlinear(model)
    attach_future_heads(model, heads)
    guessed = accepted = 0
    for seed in range(2):
        torch.manual_seed(seed)
        for head in future_heads(model):
            nn.init.normal_(head.get_parameter("weight"), std=0.05)
        prompt = torch.randint(1, 40, (3,)).tolist()
        for new_tokens in (1, 14):
            limits = {"new_tokens": new_tokens, "end_of_text_id": 0}
            wanted = decode_greedily(model, prompt, **limits)
            found = decode_speculatively(model, prompt, **limits)
            assert found.tokens == wanted
            guessed, accepted = guessed + found.guesses[0], accepted + found.guesses[1]
            # A pass gives a token of its own and the guesses that were right.
            assert len(wanted) <= found.forward_passes + found.guesses[1]
    assert 0 < accepted < guessed


def test_guesses_that_are_right_save_their_passes(tiny_model: Any) -> None:
    model = tiny_model()
    with torch.no_grad():  # which says 7 whatever it read
        model.model.norm.weight.zero_()
        model.model.norm.weight[0] = 1.0
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight.zero_()
        model.lm_head.weight[7, 0] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    attach_future_heads(model, 3)
    found = decode_speculatively(model, PROMPT, new_tokens=13, end_of_text_id=0)
    assert found.tokens == [7] * 13
    # One token of the prompt's pass, then three passes of three guesses and a token.
    assert found.forward_passes == 4 and found.guesses == (9, 9)
    assert decode_speculatively(model, PROMPT, new_tokens=0, end_of_text_id=0).tokens == []
    ended = decode_speculatively(model, PROMPT, new_tokens=13, end_of_text_id=7)
    assert ended.tokens == [7] and ended.guesses == (0, 0)
