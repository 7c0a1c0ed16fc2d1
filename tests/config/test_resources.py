from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wrinklefree.config.load import validate
from wrinklefree.config.parameters import Parameters
from wrinklefree.config.resources import (
    UNKNOWN_MODEL,
    data_memory_mb,
    model_memory_mb,
    model_parameters,
)
from wrinklefree.schema.load import overlay, read_yaml

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings(
    "ignore::wrinklefree.optim.settings.UnusualLearningRateWarning"
)


def preset(name: str | None, **changes: Any) -> Parameters:
    parameters = read_yaml(PROJECT / "params.yaml")
    if name:
        parameters = overlay(parameters, read_yaml(PROJECT / "params" / f"{name}.yaml"))
    return validate(overlay(parameters, changes))


@pytest.mark.parametrize("name", [None, "tiny"])
def test_the_parameters_of_a_model_from_scratch_are_counted(name: str | None):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    parameters = preset(name)
    assert parameters.base.scratch and parameters.tokenizer.kind == "bpe"
    shape = parameters.base.scratch.model
    config = LlamaConfig(
        vocab_size=parameters.tokenizer.vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert model_parameters(parameters) == pytest.approx(model.num_parameters(), rel=0.01)


def test_the_parameters_of_mixers_are_counted():
    from wrinklefree.models.dense import build_scratch

    states = {"attention_layers": [1], "heads": 4}
    scratch = {"scratch": {"model": {"state_space": states}}}
    parameters = preset(None, base=scratch, dlm={"enabled": False})
    assert parameters.base.scratch and parameters.tokenizer.kind == "bpe"
    size = parameters.tokenizer.vocabulary_size
    model = build_scratch(parameters.base.scratch.model, size, 128, 0, seed=0)
    assert model_parameters(parameters) == pytest.approx(model.num_parameters(), rel=0.01)


def test_a_full_size_preset_asks_for_a_gpu_and_for_memory_by_its_size():
    full, small = preset("qwen3_4b"), preset(None)
    assert full.resources.gpus == 1
    assert 4e9 < model_parameters(full) < 5e9
    assert model_parameters(full) == pytest.approx(4022468096, rel=1e-3)  # with norms
    # Weights, gradient and two moments of a step; the default preset took 2,300 MB at most.
    assert model_memory_mb(full) > 16 * model_parameters(full) / 1e6
    assert 2600 < model_memory_mb(small) < 8000
    assert small.resources.gpus == 0


def test_a_brought_model_of_unknown_size_is_taken_to_be_large():
    parameters = preset("smollm2_135m", resources={"model": None})
    assert model_parameters(parameters) == UNKNOWN_MODEL


def test_larger_batches_ask_for_more_memory_where_a_step_is_on_the_cpu():
    assert model_memory_mb(preset(None, stage2={"batch_size": 256})) > 2 * model_memory_mb(
        preset(None)
    )


def test_data_stages_ask_for_memory_by_the_tokens_of_what_they_read():
    full = preset("qwen3_4b")
    parts = {name: data_memory_mb(full, name) for name in full.sources}
    assert min(parts.values()) > 1000
    assert data_memory_mb(full) == sum(parts.values())
    assert data_memory_mb(preset(None)) == 0
