"""``dlm``: what the conversion adds to a training."""

from __future__ import annotations

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.train.settings import QuantizedTrainingSettings


class DlmSettings(QuantizedTrainingSettings):
    """Conversion to a block-diffusion model."""

    enabled: bool = True
    """Whether there is a diffusion model; without it ``distill.dlm`` has no student either, and
    evaluate leaves both out."""
    diffusion: DiffusionSettings
    """Block diffusion."""
