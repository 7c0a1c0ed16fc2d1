"""What watching costs of a training step: clipping, gradient health, variances, movement."""

from __future__ import annotations

import math

import torch
from _timing import (
    default_model,
    default_settings,
    print_header,
    print_table,
    require,
    time_in_turns,
)

from wrinklefree.stability.activations import ActivationTelemetry
from wrinklefree.stability.gradients import gradient_health
from wrinklefree.stability.movement import MovementCheck
from wrinklefree.train.loop import Trainer
from wrinklefree.train.totals import domain_metrics


def main() -> None:
    parameters, _ = default_settings()
    print_header("Watching a training")
    data, model = default_model()
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
    title = f"{rows * data.sequence_length} tokens a step; the ratio of 'watching' is its share"
    print_table(title, seconds, ["training step"])


if __name__ == "__main__":
    main()
