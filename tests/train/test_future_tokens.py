"""Heads for later tokens through stage 2 and the distillation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.future_heads import FILE
from wrinklefree.models.transforms import ModelFormat, ternary
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.distill import distill_student
from wrinklefree.train.distill_settings import DistillStudents
from wrinklefree.train.history import read_history
from wrinklefree.train.stage2 import continue_pretraining

RELATIONS = {"relations": {"heads": 2, "causal": True}}


@pytest.fixture
def run(
    make_stage: Callable[..., Stage], make_settings: Callable[..., Any], mixture: Path
) -> Callable[..., Path]:
    """Runs stage 2, or the distillation of what it made, with some heads; returns the folder."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    root = make_stage("models").folder
    for name, model_format in {"dense": ModelFormat(), "subln": ternary()}.items():
        model = LlamaForCausalLM(config)
        model_format.apply(model)
        save_model(root / name, model, model_format, mixture.parent / "tokenizer")

    def run(name: str, model: Path | None = None, **future: Any) -> Path:
        slow = {"lr": 1e-3, "adamw_lr": 1e-6, "allow_unusual_lr": True}
        training = make_settings({"optimizer.muon": slow} if model else {})
        training = training.model_dump(exclude_none=True) | {"future_tokens": future}
        settings = {"stage2": training, "distill": {"ar": training | RELATIONS}}
        inputs = {"mixture": mixture, "model": model or root / "subln", "teacher": root / "dense"}
        stage = replace(make_stage(name, **settings), inputs=inputs)
        if model:
            distill_student(replace(stage, instance="ar"))
        else:
            continue_pretraining(stage)
        return stage.folder

    return run


def test_heads_are_trained_by_stage_2_and_go_on_in_the_distillation(
    run: Callable[..., Path],
) -> None:
    stage2 = run("stage2", heads=2)
    first = load_file(stage2 / FILE)
    assert len(first) == 2 and all(weight.norm() > 0 for weight in first.values())
    history = read_history(stage2)
    assert history[0]["train/objective"] == pytest.approx(
        history[0]["train/loss"] + 0.3 * history[0]["train/future_tokens"], rel=1e-4
    )
    load_model(stage2, "ternary")
    went_on = load_file(run("kept", stage2, heads=2) / FILE)  # at rates that hardly move them
    torch.testing.assert_close(went_on, first, rtol=0.0, atol=1e-5)
    anew = load_file(run("new", stage2, heads=1) / FILE)
    assert len(anew) == 1 and anew["0.weight"].abs().max() < 1e-5
    assert not (run("without", stage2) / FILE).exists()


def test_the_weight_of_later_tokens_changes_what_is_trained(run: Callable[..., Path]) -> None:
    found = {}
    for name, future in {
        "plain": {}, "light": {"heads": 1}, "heavy": {"heads": 1, "weight": 30.0}
    }.items():  # fmt: skip
        found[name] = load_file(run(name, **future) / "model.safetensors")
    name = "model.embed_tokens.weight"
    assert not torch.equal(found["plain"][name], found["light"][name])
    assert not torch.equal(found["light"][name], found["heavy"][name])


def test_a_diffusion_student_has_no_later_tokens(make_settings: Callable[..., Any]) -> None:
    training = make_settings().model_dump(exclude_none=True) | RELATIONS
    with pytest.raises(ValidationError, match="dlm.future_tokens"):
        DistillStudents.model_validate(
            {"ar": training, "dlm": training | {"future_tokens": {"heads": 2}}}
        )
