"""Learning rate over steps, as a fraction of the peak. Imports no torch."""

from __future__ import annotations

import math

from wrinklefree.optim.settings import ScheduleSettings


def learning_rate_fraction(step: int, total_steps: int, settings: ScheduleSettings) -> float:
    """Fraction of the peak learning rate in ``step`` (from 0) of ``total_steps``.

    Linear warmup, ``(step + 1) / warmup_steps``: the first step already moves, and step
    ``warmup_steps - 1`` has the peak rate. From there ``cosine`` and ``linear`` fall to
    ``final_lr_fraction``, which they reach in the last step. ``wsd`` (arXiv 2404.06395) stays at 1
    and falls in a line over the last ``decay_fraction`` of all steps; ``constant`` stays at 1. A
    warmup as long as the run or longer leaves no room for a decay.
    """
    assert 0 <= step < total_steps, f"step {step} of {total_steps}"
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    if settings.kind == "constant":
        return 1.0
    peak_step = max(settings.warmup_steps - 1, 0)
    if settings.kind == "wsd":
        decaying = max(round(settings.decay_fraction * total_steps), 1)
        peak_step = max(peak_step, total_steps - 1 - decaying)
    progress = max(step - peak_step, 0) / max(total_steps - 1 - peak_step, 1)
    remaining = (
        0.5 * (1 + math.cos(math.pi * progress)) if settings.kind == "cosine" else 1 - progress
    )
    return settings.final_lr_fraction + (1 - settings.final_lr_fraction) * remaining
