from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from wrinklefree.quant.bitlinear import BitLinear

VOCABULARY = 29


@pytest.fixture
def build_model() -> Callable[..., PreTrainedModel]:
    """A tiny model with 6 query heads on 2 key heads; ``bits`` makes its q_proj ternary.

    ``phi3`` fuses projections, ``qwen3_moe`` has 5 experts of which each token takes 2.
    """
    experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    families: dict[str, tuple[Any, Any, dict[str, int]]] = {
        "llama": (LlamaForCausalLM, LlamaConfig, {}),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
        "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, experts),
        "phi3": (Phi3ForCausalLM, Phi3Config, {"pad_token_id": 0}),
    }

    def build(
        family: str = "llama", *, bits: bool = False, seed: int = 0, **changes: Any
    ) -> PreTrainedModel:
        torch.manual_seed(seed)
        shape = {
            "vocab_size": VOCABULARY,
            "hidden_size": 48,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "attention_bias": True,
            "tie_word_embeddings": True,
        }
        kind, config, more = families[family]
        model: PreTrainedModel = kind(config(**shape | more | changes))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.3)
        if bits:
            for layer in model.get_decoder().layers:
                layer.self_attn.q_proj = BitLinear.from_linear(layer.self_attn.q_proj)
        return model

    return build


@pytest.fixture
def tokens_BT() -> torch.Tensor:
    return torch.randint(VOCABULARY, (3, 13), generator=torch.Generator().manual_seed(5))
