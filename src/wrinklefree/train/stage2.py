"""The ``stage2`` stage: continued pretraining with quantization in the loop."""

from __future__ import annotations

from typing import Any

from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.future_heads import attach_future_heads, write_future_heads
from wrinklefree.models.transforms import ModelFormat
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.data import arrange, open_data
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.future_tokens import with_future_tokens
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.stage2_settings import Stage2Settings
from wrinklefree.train.teacher import load_teachers, teacher_of


def continue_pretraining(stage: Stage) -> dict[str, Any]:
    """Train the SubLN model on the mixture under lambda warmup, into ``stage.folder``."""
    settings = stage.section("stage2", Stage2Settings)
    trainer, model_format, data_facts = stage2_trainer(stage, settings)
    facts = trainer.run()
    write_future_heads(stage.folder, trainer.model)
    save_model(stage.folder, trainer.model, model_format, stage.inputs["model"])
    return {**data_facts, **facts}


def stage2_trainer(
    stage: Stage, settings: Stage2Settings
) -> tuple[Trainer, ModelFormat, dict[str, Any]]:
    """The training of stage 2, the format of its model, and facts about its rows."""
    data = open_data(stage, settings)
    model, model_format = load_model(stage.inputs["model"], "ternary")
    data, data_facts = arrange(stage, settings, data, model)
    objective = Objective(NextToken())
    if taught := settings.taught:
        teachers = [
            teacher_of(stage, settings, taught, data, name, teacher)
            for name, teacher in load_teachers(stage, taught).items()
        ]
        objective = distillation(NextToken(), taught, *teachers)
    objective = with_future_tokens(objective, settings.future_tokens)
    attach_future_heads(model, settings.future_tokens.heads)
    return stage_trainer(stage, model, data, settings, objective), model_format, data_facts
