"""What watching costs of a training step: clipping, gradient health, variances, movement."""

from __future__ import annotations

import math

import torch
from _timing import ROOT, default_settings, print_header, print_table, require, time_in_turns

from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.rows import MIXTURE_FILE
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.stability.activations import ActivationTelemetry
from wrinklefree.stability.gradients import gradient_health
from wrinklefree.stability.movement import MovementCheck
from wrinklefree.train.loop import Trainer, domain_metrics

MIXTURE = ROOT / "data" / "mixture"


def main() -> None:
    parameters, scratch = default_settings()
    print_header("Watching a training")
    if not (MIXTURE / MIXTURE_FILE).is_file():
        print("data/mixture is missing, nothing timed; make it with: snakemake mixture")
        return
    data = TrainingData(MIXTURE, seed=parameters.seed)
    vocabulary, length, end = data.vocabulary_size, data.sequence_length, data.end_of_text_id
    model = build_scratch(scratch.model, vocabulary, length, end, parameters.seed)
    insert_subln(model)
    insert_bitlinear(model)
    settings = parameters.stage2.model_copy(update={"evaluate_interval": 0})
    trainer = Trainer(model, data, settings)
    movement = MovementCheck(trainer.model, trainer.optimizer)
    rows = settings.batch_size * settings.gradient_accumulation_steps
    loss_B, tokens_B = torch.rand(rows).double(), torch.full((rows,), 255.0).double()
    domain_B = torch.arange(rows) % len(data.domains)

    def step() -> None:
        for hook in trainer.hooks:
            hook.before_step(trainer, settings.steps)
        trainer.optimizer.zero_grad(set_to_none=True)
        require(math.isfinite(trainer._backward(0).objective), "a finite loss")
        trainer.optimizer.step()

    def watch() -> None:
        parameters_ = list(trainer.model.parameters())
        clip = trainer.clipper.clip(parameters_)
        require(clip.finite, "finite gradients")
        gradient_health(parameters_, clip)
        domain_metrics(loss_B, tokens_B, domain_B, data.domains)
        movement.observe()

    def step_with_telemetry() -> None:
        with ActivationTelemetry(trainer.model) as telemetry:
            step()
        require(len(telemetry.layers()) > 0, "layers that were measured")

    calls = {"training step": step, "watching": watch, "with telemetry": step_with_telemetry}
    seconds = time_in_turns(calls)
    title = f"{rows * length} tokens a step; the ratio of 'watching' is its share"
    print_table(title, seconds, ["training step"])


if __name__ == "__main__":
    main()
