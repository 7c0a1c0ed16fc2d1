"""What is said of a step whose loss or gradients are not finite."""

from __future__ import annotations

from torch import nn

from wrinklefree.models.finite import first_not_finite
from wrinklefree.stability.gradients import first_non_finite


def divergence(model: nn.Module, step: int, loss: float, *, skipped: int) -> str:
    """What is not finite and what to do. Before the first update no rate can be the cause.

    Parameters
    ----------
    step : from 0; the gradients are those of it.
    skipped : steps before it that were left out for the same reason.
    """
    if broken := first_not_finite(model):
        where = f"{broken[1]} values of {broken[0]}, before the step,"
    else:
        where = culprit(model)
    advice = "Lower the learning rate or lengthen its warmup, and run again"
    if step == skipped:
        advice = (
            "No update was made yet, so the learning rate is not the cause: the model's weights"
            " or numbers of its configuration are (rope_theta, rms_norm_eps,"
            " initializer_range). Correct them, or start from another base"
        )
    before = f". Steps skipped before it, as max_skipped_steps allows: {skipped}" if skipped else ""
    return (
        f"step {step + 1}: {where} {'are' if broken else 'is'} not finite (loss {loss:g}); the step"
        f" was not applied and the last checkpoint is untouched. {advice}{before}"
    )


def culprit(model: nn.Module) -> str:
    """Where the gradients are not finite."""
    name = first_non_finite(model.named_parameters())
    return f"the gradient of {name}" if name else "the loss or the gradient norm"
