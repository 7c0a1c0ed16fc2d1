"""SubLN and ternary layers in the dense model, and what they cost."""

from functools import partial
from typing import Any

from wrinklefree.mixture.few_rows import first_training_rows, spread_held_out_rows
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.models.reconstruct import reconstruct_layers
from wrinklefree.models.settings import SublnSettings
from wrinklefree.models.subln_stage import insert_subln_stage
from wrinklefree.tracking.stage import Stage, stage_main


def subln(stage: Stage) -> dict[str, Any]:
    settings = stage.section("subln", SublnSettings)
    mixture, rows = stage.inputs["mixture"], settings.calibration_rows
    training = first_training_rows(TrainingData(mixture, seed=stage.seed), rows)
    held_out = spread_held_out_rows(HeldOutData(mixture), rows)
    reconstruct = None
    if (chosen := settings.reconstruct).kind == "layers":
        batches = first_training_rows(
            TrainingData(mixture, seed=stage.seed), chosen.rows, chosen.batch_size
        )
        log = stage.run.log_metrics
        reconstruct = partial(
            reconstruct_layers, batches=batches, settings=chosen, work=stage.work, log=log
        )
    facts = insert_subln_stage(
        settings, stage.inputs["model"], training, held_out, stage.folder, reconstruct
    )
    for what, station in facts.get("pruned", {}).items():
        stage.terminal.say(
            f"{stage.terminal.label}: {what} {station['remaining']}:"
            f" {station['parameters_after']:,} of {station['parameters_before']:,} parameters,"
            f" held-out loss {station['loss_after']:.3f}"
        )
    for kind, entries in facts["entries"].items():
        names = [name.removesuffix(".weight") for name in entries]
        stage.terminal.say(f"{stage.terminal.label}: {kind} are {', '.join(names)}")
    without = f" with SubLN, {facts['loss_ternary_without_subln']:.3f} without"
    stage.terminal.say(
        f"{stage.terminal.label}: held-out loss {facts['loss_before']:.3f} dense,"
        f" {facts['loss_after_lambda1']:.3f} ternary{without * bool(facts['gains'])}"
    )
    return facts


if __name__ == "__main__":
    stage_main("subln", subln, inputs=["model", "mixture"])
