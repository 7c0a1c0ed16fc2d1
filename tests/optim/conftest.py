from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from wrinklefree.quant.bitlinear import BitLinear

VOCABULARY = 29


@pytest.fixture
def build_model() -> Callable[..., PreTrainedModel]:
    """A tiny model with 6 query heads on 2 key heads; ``bits`` makes its q_proj ternary."""

    def build(family: str = "llama", *, bits: bool = False, seed: int = 0) -> PreTrainedModel:
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
        if family == "llama":
            model: PreTrainedModel = LlamaForCausalLM(LlamaConfig(**shape))
        else:
            model = Qwen3(Qwen3Config(**shape))
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
