"""``dlm``: what the conversion adds to a training."""

from __future__ import annotations

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.train.settings import QuantizedTrainingSettings


class DlmSettings(QuantizedTrainingSettings):
    """Conversion to a block-diffusion model."""

    diffusion: DiffusionSettings
    """Block diffusion."""
