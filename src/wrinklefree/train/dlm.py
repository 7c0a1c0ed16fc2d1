"""The ``dlm`` stage: the ternary autoregressive model becomes a block-diffusion model."""

from __future__ import annotations

from typing import Any

from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.mask_token import add_mask_token
from wrinklefree.models.transforms import DiffuseBlocks
from wrinklefree.tracking.left_out import leave_out
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.data import arrange, open_data
from wrinklefree.train.dlm_settings import DlmSettings
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.objective import Objective


def convert_to_diffusion(stage: Stage) -> dict[str, Any]:
    """Add a mask token and train on masked blocks, into ``stage.folder``.

    Where no diffusion model is wanted, the folder only says so.
    """
    settings: DlmSettings = stage.section("dlm", DlmSettings)
    if not settings.enabled:
        return leave_out(stage.folder, "dlm.enabled is false")
    diffusion = settings.diffusion
    data = open_data(stage, settings)
    model, model_format = load_model(stage.inputs["model"], "ternary")
    data, data_facts = arrange(stage, settings, data, model)
    tokenizer = stage.work / "tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    mask_token_id = add_mask_token(
        model, stage.inputs["model"], tokenizer, diffusion.mask_init, stage.seed
    )
    diffuse = DiffuseBlocks(
        block_size=diffusion.block_size,
        token_shift=diffusion.token_shift,
        mask_token_id=mask_token_id,
    )
    diffuse.apply(model)
    objective = Objective(BlockDiffusion(diffusion, mask_token_id, stage.seed))
    facts = stage_trainer(stage, model, data, settings, objective).run()
    save_model(stage.folder, model, model_format.then(diffuse), tokenizer)
    return {"mask_token_id": mask_token_id, **data_facts, **facts}
