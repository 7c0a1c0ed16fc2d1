"""Tiny models, batches and tokenizers for the tests of models and their export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from wrinklefree.mixture.batch import Batch

VOCABULARY = 97


def build_tiny(family: str = "llama", **changes: Any) -> PreTrainedModel:
    """Hidden 64, two layers, grouped queries; Qwen3 has heads of a size of its own.

    The second layer of ``qwen3_moe`` has 5 experts, of which a token takes 2.
    """
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 0,
        **changes,
    }
    torch.manual_seed(torch.seed() % 2**31)
    if family == "qwen3":
        model: PreTrainedModel = Qwen3ForCausalLM(Qwen3Config(**{"head_dim": 32, **settings}))
    elif family == "qwen3_moe":
        experts = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        shape = {"decoder_sparse_step": 2, "norm_topk_prob": True, "head_dim": 16}
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**experts | shape | settings))
        model.set_experts_implementation("eager")
    else:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))
    model.set_attn_implementation("sdpa")
    return model.eval()


def build_batch(rows: int = 3, length: int = 33) -> Batch:
    """Two documents a row, and padding at the end of the first row."""
    tokens = torch.randint(1, VOCABULARY, (rows, length))
    cut = length // 3
    ids = (torch.arange(length) >= cut).long().repeat(rows, 1)
    ids[0, -5:] = -1
    positions = torch.cat([torch.arange(cut), torch.arange(length - cut)]).repeat(rows, 1)
    return Batch(
        tokens_BT=tokens,
        document_ids_BT=ids,
        positions_BT=positions,
        source_documents_BT=ids,
        source_positions_BT=positions.where(ids >= 0, -1),
        domain_B=torch.zeros(rows, dtype=torch.int64),
        sample_B=torch.arange(rows),
    )


def write_tokenizer(folder: Path, special: tuple[str, ...] = ("<eos>",)) -> Path:
    """A tokenizer of VOCABULARY ids: the special tokens, then made-up words."""
    words = [*special, *(f"w{index}" for index in range(VOCABULARY - len(special)))]
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=special[0])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}', encoding="utf-8"
    )
    return folder


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    return build_tiny


@pytest.fixture
def batch() -> Callable[..., Batch]:
    return build_batch


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def make_tokenizer() -> Callable[..., Path]:
    return write_tokenizer
