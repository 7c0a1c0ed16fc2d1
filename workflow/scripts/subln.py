"""SubLN and ternary layers in the dense model, and what they cost."""

from typing import Any

from wrinklefree.config.training import SublnSettings
from wrinklefree.data.loader import TrainingData
from wrinklefree.models.subln_stage import insert_subln_stage
from wrinklefree.tracking.stage import Stage, stage_main


def subln(stage: Stage) -> dict[str, Any]:
    settings = stage.section("subln", SublnSettings)
    data = TrainingData(stage.inputs["mixture"], seed=stage.seed)
    rows = (data.batch(0, i, batch_size=8, micro_batches=2**16) for i in range(2**16))
    return insert_subln_stage(settings, stage.inputs["model"], rows, stage.folder)


if __name__ == "__main__":
    stage_main("subln", subln, inputs=["model", "mixture"])
