"""``distill``: what the distillation adds to a training."""

from __future__ import annotations

from wrinklefree.distill.settings import DistillationWeights, RelationSettings
from wrinklefree.quant.settings import LambdaWarmupSettings
from wrinklefree.schema.section import (
    Section,
    Temperature,
)
from wrinklefree.train.settings import QuantizedTrainingSettings


class DistillSettings(QuantizedTrainingSettings):
    """Distillation of the dense teacher into a ternary student."""

    lambda_warmup: LambdaWarmupSettings = LambdaWarmupSettings(warmup_steps=0)
    """Quantization strength over steps; the student is ternary already."""
    weights: DistillationWeights = DistillationWeights()
    """Factors of the terms of the loss."""
    temperature: Temperature = 2.0
    """Softens both distributions of the logits term."""
    temperature_squared: bool = True
    """Multiply the logits term by temperature squared, as the paper's code and not its text."""
    relations: RelationSettings
    """The relations term."""


class DistillStudents(Section):
    """One distillation per student."""

    ar: DistillSettings
    """The autoregressive student."""
    dlm: DistillSettings
    """The diffusion student."""
