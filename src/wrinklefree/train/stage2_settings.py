"""``stage2``: what continued pretraining adds to a training."""

from __future__ import annotations

from typing import Literal

from wrinklefree.distill.settings import DistillationWeights
from wrinklefree.schema.section import NonNegativeFloat, Temperature
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.future_tokens_settings import FutureTokensSettings
from wrinklefree.train.settings import QuantizedTrainingSettings


class Stage2Weights(DistillationWeights):
    """Factors of the terms of the loss."""

    cross_entropy: NonNegativeFloat = 0.0
    """Weight of the text itself."""
    relations: NonNegativeFloat = 0.0
    """Weight of the teacher's relations between tokens."""


class Stage2DistillationSettings(DistillationSettings):
    """The terms of the loss with a teacher; without one they have no effect."""

    weights: Stage2Weights = Stage2Weights()  # pyright: ignore[reportIncompatibleVariableOverride]
    """Factors of the terms of the loss."""
    temperature: Temperature = 1.0
    """Softens both distributions of the logits term."""


class Stage2Settings(QuantizedTrainingSettings):
    """Continued pretraining with quantization in the loop."""

    teacher: Literal["none", "base"] = "none"
    """``none``: the text alone teaches; ``base``: the dense model that the student was made of."""
    distillation: Stage2DistillationSettings = Stage2DistillationSettings()
    """What the teacher teaches. Has no effect with ``teacher: none``."""
    future_tokens: FutureTokensSettings = FutureTokensSettings()
    """Heads that predict the tokens after the next one."""

    @property
    def taught(self) -> DistillationSettings | None:
        """What a teacher adds to the loss, if there is one."""
        return None if self.teacher == "none" else self.distillation
