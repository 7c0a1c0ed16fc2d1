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
    """``absmean``: the mean magnitude of the weights, as in BitNet b1.58. ``least_squares``: the
    scale whose ternary weights are nearest to the weights. ``learned``: starts as ``least_squares``
    and is trained (ParetoQ)."""
    granularity: Granularity = "tensor"
    """Which weights share a scale. ``tensor``: those of a matrix. ``head``: those of an attention
    head of queries, keys or values; other matrices have one scale. ``row``: those of an output.
    ``group``: ``group_size`` neighbours in a row."""
    group_size: Literal[64, 128, 256] = 128
    """Weights of a ``group``. Must divide the number of inputs of every layer."""


class LambdaWarmupSettings(Section):
    """Quantization strength over steps, from 0 (full precision) to 1 (ternary)."""

    warmup_steps: StepsOrZero
    """Steps until quantization is at full strength; fewer than the stage's ``steps``. 0: at full
    strength from the first step."""
    schedule: Literal["linear", "cosine", "hard"] = "linear"
    """Shape of the rise; ``hard`` stays at 0 until ``warmup_steps`` and then is 1."""
