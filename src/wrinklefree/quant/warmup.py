"""How the strength of quantization grows over the steps of a stage. Imports no torch."""

from __future__ import annotations

import math

from wrinklefree.quant.settings import LambdaWarmupSettings


def quantization_lambda(step: int, settings: LambdaWarmupSettings) -> float:
    """Strength at ``step`` (0 is the first): 0 there, exactly 1 from ``warmup_steps`` on.

    With ``warmup_steps`` 0 it is 1 from the first step. ``hard`` has nothing between 0 and 1: steps
    of 16 bits, then steps of 1.58 (arXiv 2502.11895).
    """
    if step >= settings.warmup_steps:
        return 1.0
    if settings.schedule == "hard":
        return 0.0
    progress = step / settings.warmup_steps
    if settings.schedule == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * progress))
    return progress
