"""``clipping`` of gradients, and ``spikes`` of the loss."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from wrinklefree.schema.reads import ClippingName
from wrinklefree.schema.section import (
    Decay,
    Section,
    Steps,
)

Norm = Annotated[float, Field(gt=0.0, le=1e6)]


class ZClipSettings(Section):
    """The whole gradient, by the z-score of its norm (arXiv 2504.02507)."""

    z_threshold: Annotated[float, Field(gt=0.0, le=1000.0)] = 3.0
    """Standard deviations above the mean from which a norm is clipped."""
    ema_decay: Decay = 0.99
    """Weight of the past in the running mean and variance of the norm."""
    warmup_steps: Steps = 25
    """Steps that gather statistics, in which only spikes are clipped."""
    reopen_after: Steps = 20
    """Consecutive clips after which the statistics are gathered anew."""


class AdaGCSettings(Section):
    """Each tensor's gradient, by the running mean of its norm (arXiv 2502.11034)."""

    ratio: Annotated[float, Field(ge=1.0, le=1000.0)] = 1.05
    """Largest norm of a tensor's gradient, as a multiple of its running mean."""
    ema_decay: Decay = 0.98
    """Weight of the past in that mean."""
    warmup_steps: Steps = 100
    """Steps in which the whole gradient is clipped instead."""
    warmup_max_norm: Norm = 1.0
    """The largest norm of the whole gradient in those steps."""


class FixedClipSettings(Section):
    """The whole gradient, to a norm that stays the same."""

    max_norm: Norm = 1.0
    """The largest norm of the whole gradient."""


class ClippingSettings(Section):
    """How gradients are clipped, and a block of settings for each way.

    Only the block of the chosen one counts; the others are validated and have no effect.
    """

    name: ClippingName = "zclip"
    """How to clip. ``none``: measure norms and clip nothing."""
    zclip: ZClipSettings = ZClipSettings()
    """The whole gradient, where its norm is an outlier."""
    adagc: AdaGCSettings = AdaGCSettings()
    """Each tensor's gradient, where its norm is above that of its past."""
    fixed: FixedClipSettings = FixedClipSettings()
    """The whole gradient, to a norm that stays the same."""

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings in the block of the way that is used, by name."""
        return {} if self.name == "none" else dict(getattr(self, self.name))


class SpikeSettings(Section):
    """What is done about a loss that jumps."""

    enabled: bool = False
    """Whether the loss of every step is compared with those before it."""
    window: Annotated[int, Field(ge=5, le=10_000)] = 50
    """Number of losses to compare with. Nothing is a spike before there are as many."""
    threshold: Annotated[float, Field(gt=0.0, le=1000.0)] = 8.0
    """A loss is a spike if it is this many robust deviations (1.4826 MAD) above the median of those
    losses."""
    rollback: bool = False
    """After a spike, go back to a checkpoint before the last ``skip_steps`` steps and leave these
    steps out."""
    skip_steps: Annotated[int, Field(gt=0, le=10_000)] = 20
    """Steps that a rollback leaves out, at most ``window``. The last of them is the one that
    spiked. Checkpoints are kept as far back."""

    @property
    def first_back(self) -> int:
        """The earliest step that a spike leads back to, which needs a checkpoint; 0: none does."""
        return self.window + 1 - self.skip_steps if self.enabled and self.rollback else 0

    @property
    def reach(self) -> int:
        """How many steps before its newest checkpoint a spike can lead training back."""
        return self.skip_steps - 1 if self.enabled and self.rollback else 0

    @model_validator(mode="after")
    def _there_is_something_to_go_back_to(self) -> Self:
        if self.enabled and self.rollback and self.skip_steps > self.window:
            raise ValueError(
                f"skip_steps is {self.skip_steps} and window {self.window}: the first spikes would"
                " lead back to before the first step; lower skip_steps, or raise window"
            )
        return self
