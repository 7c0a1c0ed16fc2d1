"""The ``distill`` stage: the dense model teaches a ternary student."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.future_heads import (
    attach_future_heads,
    read_future_heads,
    write_future_heads,
)
from wrinklefree.models.transforms import DiffuseBlocks, ModelFormat
from wrinklefree.schema.load import validate_section
from wrinklefree.tracking.artifact import read_manifest
from wrinklefree.tracking.left_out import leave_out, why_left_out
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.data import arrange, open_data
from wrinklefree.train.distill_settings import DistillSettings, NextTokenDistillSettings
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.future_tokens import with_future_tokens
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.question import Corruption
from wrinklefree.train.teacher import load_teachers, teacher_of


def distill_student(stage: Stage) -> dict[str, Any]:
    """Train the student ``stage.instance`` under its dense teachers, into ``stage.folder``.

    Where there is none, the folder only says so.
    """
    if why := why_left_out(stage.inputs["model"]):
        return leave_out(stage.folder, why)
    of_next_tokens = stage.instance == "ar"
    settings: DistillSettings = stage.section(
        f"distill.{stage.instance}", NextTokenDistillSettings if of_next_tokens else DistillSettings
    )
    data = open_data(stage, settings)
    kind = "ternary" if of_next_tokens else "diffusion"
    student, student_format = load_model(stage.inputs["model"], kind)
    teachers = load_teachers(stage, settings)
    if torch.cuda.is_available():
        for name in teachers:  # a variable for each would keep the last one in memory
            nn.Module.to(teachers[name], "cuda")
    # A teacher judges how hard a row is: a block-diffusion student can't, token by token.
    data, data_facts = arrange(stage, settings, data, next(iter(teachers.values())))
    corruption = _corruption(stage, student_format)
    mask_token_id = corruption.mask_token_id
    reads = [
        teacher_of(stage, settings, settings, data, name, teacher, mask_token_id)
        for name, teacher in teachers.items()
    ]
    objective = distillation(corruption, settings, *reads)
    if isinstance(settings, NextTokenDistillSettings):
        objective = with_future_tokens(objective, settings.future_tokens)
        if read_future_heads(stage.inputs["model"], student) != settings.future_tokens.heads:
            attach_future_heads(student, settings.future_tokens.heads)
    del teachers  # which may be written down by now
    facts = stage_trainer(stage, student, data, settings, objective).run()
    write_future_heads(stage.folder, student)
    save_model(stage.folder, student, student_format, stage.inputs["model"])
    return {**data_facts, **facts}


def _corruption(stage: Stage, student: ModelFormat) -> Corruption:
    if (blocks := student.find(DiffuseBlocks)) is None:
        return NextToken()
    # The student goes on with the noise that it was converted with.
    converted = read_manifest(stage.inputs["model"]).settings["dlm"]["diffusion"]
    diffusion = validate_section(DiffusionSettings, converted, str(stage.inputs["model"]))
    return BlockDiffusion(diffusion, blocks.mask_token_id, stage.seed)
