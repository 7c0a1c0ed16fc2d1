"""A mixture of experts through the stages, which know nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.models.folder import load_model
from wrinklefree.models.settings import SublnSettings
from wrinklefree.models.subln_stage import insert_subln_stage
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.base import make_base
from wrinklefree.train.distill import distill_student
from wrinklefree.train.history import read_history
from wrinklefree.train.loop import Trainer
from wrinklefree.train.stage2 import continue_pretraining

MODEL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "layers": 2, "heads": 2, "key_value_heads": 1,
    "experts": {"count": 4, "per_token": 2, "intermediate_size": 16},
}  # fmt: skip
ROUTER = ("train/router_balance", "router/entropy", "router/busiest_share", "router/dead_experts")


@pytest.fixture
def make_trainer(mixture: Path, make_settings: Callable[..., Any]) -> Callable[..., Trainer]:
    """Trainings of a small ternary model with experts, all of which tokens prefer the first."""

    def make(**changes: Any) -> Trainer:
        torch.manual_seed(3)
        config = Qwen3MoeConfig(
            vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=16, norm_topk_prob=True, attn_implementation="sdpa",
        )  # fmt: skip
        model = Qwen3MoeForCausalLM(config)
        insert_subln(model)
        insert_bitlinear(model)
        with torch.no_grad():
            model.model.embed_tokens.weight.add_(0.02)
            for layer in model.model.layers:
                layer.mlp.gate.weight[:2].add_(0.02)  # pyright: ignore
        return Trainer(model, TrainingData(mixture, seed=7), make_settings(changes))

    return make


@pytest.mark.filterwarnings("ignore:the stage export will refuse:UserWarning")
def test_the_chain_of_stages_trains_ternary_experts(
    make_stage: Callable[..., Stage], make_settings: Callable[..., Any], mixture: Path
) -> None:
    training = make_settings().model_dump(exclude_none=True)
    scratch = {key: value for key, value in training.items() if key != "lambda_warmup"}
    distillation = {"relations": {"heads": 2, "causal": True}}
    settings: dict[str, Any] = {
        "base": {"source": {"kind": "scratch"}, "scratch": {"model": MODEL, "training": scratch}},
        "stage2": training,
        "distill": {"ar": training | distillation},
    }

    def stage(name: str, **inputs: Path) -> Stage:
        made = replace(make_stage(name, **settings), inputs={"mixture": mixture, **inputs})
        return replace(made, instance="ar") if name == "distill" else made

    base = stage("base", tokenizer=mixture.parent / "tokenizer")
    make_base(base)
    held_out = list(HeldOutData(mixture).batches("first", rows=4, batch_size=2))
    folder = base.folder.parent / "subln"
    facts = insert_subln_stage(SublnSettings(), base.folder, held_out, held_out, folder)
    assert facts["loss_after_lambda0"] == pytest.approx(facts["loss_before"], abs=0.1)
    stage2 = stage("stage2", model=folder)
    continue_pretraining(stage2)
    distill = stage("distill", model=stage2.folder, teacher=base.folder)
    distill_student(distill)
    for one in (base, stage2, distill):
        entry = read_history(one.folder)[-1]
        assert all(name in entry for name in ROUTER)
        assert entry["train/router_balance_weighted"] == pytest.approx(
            0.01 * entry["train/router_balance"]
        )
    before, after = (load_model(path, "ternary")[0] for path in (folder, distill.folder))
    moved = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        assert not torch.equal(parameter, moved[name]), name


def test_the_weight_of_the_balance_spreads_tokens(make_trainer: Callable[..., Trainer]) -> None:
    found = {}
    for weight in (0.0, 5.0):
        trainer = make_trainer(router_balance_weight=weight, steps=12)
        trainer.run()
        history = trainer.state.history
        found[weight] = history[-1]["train/router_balance"]
        entry = history[0]
        expected = entry["train/loss"] + weight * entry["train/router_balance"]
        assert entry["train/objective"] == pytest.approx(expected, rel=1e-5)
    assert found[5.0] < found[0.0] - 0.05


def test_activation_checkpointing_and_a_second_run_change_no_bit(
    make_trainer: Callable[..., Trainer],
    check_that_runs_are_the_same: Callable[[Callable[..., Trainer]], None],
) -> None:
    check_that_runs_are_the_same(make_trainer)


def test_layers_whose_routers_are_read_are_not_compiled_in_silence(
    make_trainer: Callable[..., Trainer],
) -> None:
    with pytest.raises(UserError, match="every decoder layer has a router or projections that"):
        make_trainer(compile=True)
