"""``dlm``: what the conversion adds to a training."""

from __future__ import annotations

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.train.settings import QuantizedTrainingSettings


class DlmSettings(QuantizedTrainingSettings):
    """Conversion to a block-diffusion model."""

    enabled: bool = True
    """Whether to make a diffusion model. Without it ``distill.dlm`` has no student, and
    ``evaluate`` leaves out both."""
    diffusion: DiffusionSettings
    """Block diffusion."""
