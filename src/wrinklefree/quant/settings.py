"""``subln.quantizer`` and ``lambda_warmup``: what a code stands for, and how strongly it counts."""

from __future__ import annotations

from typing import Literal

from wrinklefree.schema.section import (
    Section,
    StepsOrZero,
)

Scale = Literal["absmean", "least_squares", "learned"]
Granularity = Literal["tensor", "head", "row", "group"]


class QuantizerSettings(Section):
    """The scale that ternary codes of weights are multiplied by."""

    scale: Scale = "absmean"
    """``absmean``: the mean magnitude, as BitNet b1.58; ``least_squares``: what is nearest to the
    weights; ``learned``: starts there and is trained (ParetoQ)."""
    granularity: Granularity = "tensor"
    """What has a scale of its own: a matrix; an attention ``head`` of queries, keys or values
    (other matrices have one scale); a ``row``, which is an output; a ``group`` of a row."""
    group_size: Literal[64, 128, 256] = 128
    """Neighbouring weights in a ``group``. Must divide the inputs of every layer."""


class LambdaWarmupSettings(Section):
    """Quantization strength over steps, from 0 (full precision) to 1 (ternary)."""

    warmup_steps: StepsOrZero
    """0: fully quantized from the first step. Fewer than the stage's ``steps``."""
    schedule: Literal["linear", "cosine", "hard"] = "linear"
    """Shape of the rise; ``hard`` stays at 0 until ``warmup_steps`` and then is 1."""
