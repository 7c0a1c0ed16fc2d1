from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from wrinklefree.errors import UserError
from wrinklefree.tracking.stage import Stage
from wrinklefree.train import base
from wrinklefree.train.base import make_base

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}


@pytest.fixture
def brought(
    mixture: Path, make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Stage]:
    """Runs the stage on a model as if it had been brought from somewhere."""

    def bring(model: Any, **foreseen: Any) -> Stage:
        monkeypatch.setattr(base, "load_source", lambda source, cache: model)
        source = {"kind": "folder", "path": "somewhere", "sha256": "0" * 64}
        stage = make_stage(base={"source": source})
        inputs = {"tokenizer": mixture.parent / "tokenizer"}
        stage = replace(stage, inputs=inputs, foreseen=foreseen)
        make_base(stage)
        return stage

    return bring


def test_a_base_that_cannot_be_exported_is_brought_with_a_warning(brought: Callable[..., Stage]):
    with pytest.warns(UserWarning, match="export will refuse .* architecture is mistral"):
        stage = brought(MistralForCausalLM(MistralConfig(**SIZES)))
    assert (stage.folder / "model.safetensors").is_file()
    odd = LlamaConfig(**{**SIZES, "intermediate_size": 63})
    with pytest.warns(UserWarning, match="mlp.gate_proj of layer 0 has 63 outputs"):
        brought(LlamaForCausalLM(odd))


def test_a_base_that_can_be_exported_is_brought_in_silence(brought: Callable[..., Stage]):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brought(LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)))


def test_a_base_that_llama_cpp_would_not_run_is_brought_with_a_warning(
    brought: Callable[..., Stage],
):
    untied = {"tie_word_embeddings": False}
    with pytest.warns(
        UserWarning, match="this base with SubLN, .*: .* no head beside .*; without Sub"
    ):
        brought(LlamaForCausalLM(LlamaConfig(**SIZES, **untied)))
    with pytest.warns(
        UserWarning, match="this base, so .* hidden_act is gelu. transformers will run it$"
    ):
        brought(LlamaForCausalLM(LlamaConfig(**SIZES, **untied, hidden_act="gelu")))


UNTIED = LlamaConfig(**SIZES, tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("config", "gain", "said"),
    [
        (UNTIED, "ones", r"no head beside .*if_possible, and these too without SubLN \(subln.gain"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "none", r"hidden_act is gelu\. .*if_possible$"),
        (LlamaConfig(**{**SIZES, "intermediate_size": 63}), "none", "63 outputs.*nothing .*none"),
    ],
)
def test_gguf_files_that_are_asked_for_by_name_and_not_possible_end_the_stage(
    brought: Callable[..., Stage], config: LlamaConfig, gain: str, said: str
):
    foreseen = {"subln": {"gain": gain}, "export": {"gguf": ["TQ2_0", "Q4_0"]}}
    with pytest.raises(UserError, match=f"export asks for TQ2_0, Q4_0 in GGUF, and .*{said}"):
        brought(LlamaForCausalLM(config), **foreseen)


@pytest.mark.parametrize(
    ("gain", "export"),
    [("none", {"gguf": ["F32"]}), ("ones", {"gguf": []}), ("ones", {"linear_class": "none"})],
)
def test_without_subln_or_gguf_an_untied_head_is_brought_in_silence(
    brought: Callable[..., Stage], gain: str, export: dict[str, Any]
):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        brought(LlamaForCausalLM(UNTIED), subln={"gain": gain}, export=export)


def test_a_shape_that_is_pruned_is_left_to_the_stage_that_prunes(brought: Callable[..., Stage]):
    foreseen = {"subln": {"prune": {"intermediate_size": 32}}, "export": {"gguf": ["TQ2_0"]}}
    odd = LlamaConfig(**{**SIZES, "intermediate_size": 72})
    with pytest.warns(UserWarning, match="intermediate_size is 72, no multiple of 32"):
        brought(LlamaForCausalLM(odd), **foreseen)


def test_a_shape_that_cannot_be_exported_is_warned_of_before_it_is_trained(
    mixture: Path,
    make_stage: Callable[..., Stage],
    make_settings: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
):
    def no_training(*arguments: Any, **named: Any) -> Any:
        raise InterruptedError

    monkeypatch.setattr(base, "stage_trainer", no_training)
    training = make_settings().model_dump(exclude={"lambda_warmup"}, exclude_none=True)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 63,
        "layers": 1,
        "heads": 2,
        "key_value_heads": 1,
        "rope_theta": 10000.0,
        "initializer_range": 0.02,
    }
    scratch = {"model": shape, "training": training}
    stage = make_stage(base={"source": {"kind": "scratch"}, "scratch": scratch})
    stage = replace(stage, inputs={"mixture": mixture, "tokenizer": mixture.parent / "tokenizer"})
    with pytest.warns(UserWarning, match="63 outputs"), pytest.raises(InterruptedError):
        make_base(stage)
