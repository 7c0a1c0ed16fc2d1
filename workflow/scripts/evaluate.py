"""The comparison of every model of the run."""

from typing import Any

from wrinklefree.evaluate.settings import EvaluateSettings
from wrinklefree.evaluate.stage import evaluate_models
from wrinklefree.tracking.left_out import why_left_out
from wrinklefree.tracking.stage import Stage, stage_main

MODELS = ["base", "subln", "stage2", "distill_ar", "dlm", "distill_dlm"]


def evaluate(stage: Stage) -> dict[str, Any]:
    facts = evaluate_models(
        stage.section("evaluate", EvaluateSettings),
        {name: stage.inputs[name] for name in MODELS if not why_left_out(stage.inputs[name])},
        stage.inputs["mixture"],
        stage.folder,
        seed=stage.seed,
        tasks=stage.inputs["tasks"],
        say=stage.terminal.say,
    )
    stage.terminal.say((stage.folder / "table.txt").read_text(encoding="utf-8"))
    return facts


if __name__ == "__main__":
    stage_main("evaluate", evaluate, inputs=[*MODELS, "mixture", "tasks"])
