"""A model with states through the stages, which know nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.settings import ModelSettings, SublnSettings
from wrinklefree.models.subln_stage import insert_subln_stage
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.models.transforms import ModelFormat, ternary
from wrinklefree.tracking.left_out import why_left_out
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.base import make_base
from wrinklefree.train.distill import distill_student
from wrinklefree.train.dlm import convert_to_diffusion
from wrinklefree.train.history import read_history
from wrinklefree.train.loop import Trainer
from wrinklefree.train.stage2 import continue_pretraining

MODEL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "layers": 3, "heads": 2, "key_value_heads": 1,
    "state_space": {"attention_layers": [1], "heads": 4, "state_size": 8},
}  # fmt: skip
RELATIONS = {"layer_fractions": [0.4], "heads": 2, "causal": True}


@pytest.fixture
def make_trainer(mixture: Path, make_settings: Callable[..., Any]) -> Callable[..., Trainer]:
    """Trainings of a small ternary model with states."""

    def make(**changes: Any) -> Trainer:
        model = build_scratch(ModelSettings(**MODEL), 400, 32, 0, seed=3)
        insert_subln(model)
        insert_bitlinear(model)
        return Trainer(model, TrainingData(mixture, seed=7), make_settings(changes))

    return make


@pytest.fixture
def make(
    make_stage: Callable[..., Stage], make_settings: Callable[..., Any], mixture: Path
) -> Callable[..., Stage]:
    """A stage with settings of all of them."""
    training = make_settings().model_dump(exclude_none=True)
    scratch = {key: value for key, value in training.items() if key != "lambda_warmup"}

    def make(name: str, changes: dict[str, Any] | None = None, **inputs: Path) -> Stage:
        settings: dict[str, Any] = {
            "base": {
                "source": {"kind": "scratch"},
                "scratch": {"model": MODEL, "training": scratch},
            },
            "stage2": training,
            "dlm": {**training, "diffusion": {"block_size": 4}, **(changes or {})},
            "distill": {
                student: training | {"relations": RELATIONS} | (changes or {})
                for student in ("ar", "dlm")
            },
        }
        stage = replace(
            make_stage(f"{name}{changes}", **settings), inputs={"mixture": mixture, **inputs}
        )
        return replace(stage, instance=name.partition(".")[2] or None)

    return make


@pytest.fixture
def student(mixture: Path, tmp_path: Path) -> Path:
    """An untrained ternary model in a folder, beside the dense one in ``base``."""
    model = build_scratch(ModelSettings(**MODEL), 400, 32, 0, seed=3)
    for name, model_format in {"base": ModelFormat(), "student": ternary()}.items():
        model_format.apply(model)
        save_model(tmp_path / name, model, model_format, mixture.parent / "tokenizer")
    return tmp_path / "student"


@pytest.mark.filterwarnings("ignore:the stage export will refuse:UserWarning")
def test_the_chain_of_stages_trains_every_part_of_a_model_with_states(
    make: Callable[..., Stage], mixture: Path
) -> None:
    base = make("base", tokenizer=mixture.parent / "tokenizer")
    make_base(base)
    held_out = list(HeldOutData(mixture).batches("first", rows=4, batch_size=2))
    folder = base.folder.parent / "subln"
    facts = insert_subln_stage(SublnSettings(), base.folder, held_out, held_out, folder)
    assert facts["loss_after_lambda0"] == pytest.approx(facts["loss_before"], abs=0.1)
    assert "mamba.in_proj.weight" in facts["entries"]["ternary"]
    stage2 = make("stage2", model=folder)
    continue_pretraining(stage2)
    distill = make("distill.ar", model=stage2.folder, teacher=base.folder)
    distill_student(distill)
    assert read_history(distill.folder)[-1]["distill/relations"] > 0
    before, after = (load_model(path, "ternary")[0] for path in (folder, distill.folder))
    moved = dict(after.named_parameters())
    for name, parameter in before.named_parameters():
        assert not torch.equal(parameter, moved[name]), name


def test_activation_checkpointing_and_a_second_run_change_no_bit(
    make_trainer: Callable[..., Trainer],
) -> None:
    ends: list[list[Tensor]] = []
    for checkpointing in (False, False, True):
        trainer = make_trainer(activation_checkpointing=checkpointing)
        trainer.run()
        ends.append([parameter.detach() for parameter in trainer.model.parameters()])
    for other in (1, 2):
        assert all(map(torch.equal, ends[0], ends[other]))


def test_attention_logits_are_recorded_in_the_layers_that_have_attention(
    make_trainer: Callable[..., Trainer],
) -> None:
    muonclip = {"lr": 0.0009, "adamw_lr": 0.0009}
    trainer = make_trainer(optimizer={"name": "muonclip", "muonclip": muonclip})
    trainer.run()
    assert trainer.state.history[-1]["train/qk_max_logit"] > 0


def test_compilation_is_refused(make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(UserError, match="no program; set compile to false"):
        make_trainer(compile=True)


def test_relations_of_a_layer_without_attention_are_refused(
    make: Callable[..., Stage], student: Path
) -> None:
    stage = make(
        "distill.ar", {"relations": RELATIONS | {"layer_fractions": [0.8]}}, model=student,
        teacher=student.parent / "base",
    )  # fmt: skip
    with pytest.raises(UserError, match="layer 2 of bamba has a state in place of attention"):
        distill_student(stage)


def test_a_conversion_to_block_diffusion_is_refused_or_left_out(
    make: Callable[..., Stage], student: Path
) -> None:
    with pytest.raises(UserError, match="set dlm.enabled to false"):
        convert_to_diffusion(make("dlm", model=student))
    stage = make("dlm", {"enabled": False}, model=student)
    facts = convert_to_diffusion(stage)
    assert facts == {"left_out": "dlm.enabled is false"}
    nothing = make("distill.dlm", model=stage.folder)
    assert distill_student(nothing) == facts
    assert why_left_out(nothing.folder) == "dlm.enabled is false"
    assert why_left_out(student) is None
