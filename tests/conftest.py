"""Shared by all tests: no network by accident, no telemetry, a small model and rows for it.

The fixtures import torch themselves: most tests of settings and tracking need none.
"""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

VOCABULARY = 40


@pytest.fixture
def tiny_model():
    """Builds a float64 Llama of two layers with grouped queries and random norms, by seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(seed=0):
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            attn_implementation="sdpa",
        )
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.2) if parameter.ndim == 2 else parameter.normal_(1.0, 0.1)
        return model

    return build


@pytest.fixture
def pack():
    """Rows given as lists of piece lengths; the tail is padding."""
    import torch

    from wrinklefree.data.loader import Batch

    def build(rows, length, seed=0):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, VOCABULARY - 1, (len(rows), length), generator=generator)
        documents = torch.full((len(rows), length), -1)
        positions = torch.zeros((len(rows), length), dtype=torch.int64)
        for row, pieces in enumerate(rows):
            start = 0
            for document, size in enumerate(pieces):
                documents[row, start : start + size] = document
                positions[row, start : start + size] = torch.arange(size)
                start += size
        rows_B = torch.arange(len(rows))
        return Batch(
            tokens_BT=tokens,
            document_ids_BT=documents,
            positions_BT=positions,
            source_documents_BT=documents,
            source_positions_BT=positions.where(documents >= 0, -1),
            domain_B=torch.zeros_like(rows_B),
            sample_B=rows_B + 1000,
        )

    return build
