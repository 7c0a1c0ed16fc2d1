"""``zclip``: clipping of the gradients' norm."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wrinklefree.schema.section import (
    Decay,
    Section,
    Steps,
)


class ZClipSettings(Section):
    """Adaptive clipping of the gradient norm by its z-score (arXiv 2504.02507)."""

    enabled: bool = True
    """Whether norms are clipped."""
    z_threshold: Annotated[float, Field(gt=0.0, le=1000.0)] = 3.0
    """Standard deviations above the mean from which a norm is clipped."""
    ema_decay: Decay = 0.99
    """Weight of the past in the running mean and variance of the norm."""
    warmup_steps: Steps = 25
    """Steps that only gather statistics."""
    reopen_after: Steps = 20
    """Consecutive clips after which the statistics are gathered anew."""
