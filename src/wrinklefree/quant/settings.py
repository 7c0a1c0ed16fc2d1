"""``lambda_warmup``: how strongly weights and activations are quantized."""

from __future__ import annotations

from typing import Literal

from wrinklefree.schema.section import (
    Section,
    StepsOrZero,
)


class LambdaWarmupSettings(Section):
    """Quantization strength over steps, from 0 (full precision) to 1 (ternary)."""

    warmup_steps: StepsOrZero
    """0: fully quantized from the first step. Fewer than the stage's ``steps``."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Shape of the rise."""
