"""Optimizers and their learning-rate guard.

Muon's update has a size of its own, so a rate that is right for AdamW leaves the weights almost
still (an expensive way to learn nothing). The guard is keyed on (optimizer, scale).
"""

from __future__ import annotations

import warnings
from typing import Annotated, Literal

from pydantic import Field, model_validator

from wrinklefree.config.section import (
    Decay,
    Epsilon,
    Fraction,
    LearningRate,
    Section,
    Steps,
    StepsOrZero,
)

ADAMW_RANGE = (5e-5, 1e-3)
MUON_ORIGINAL_RANGE = (1e-3, 3e-3)

WeightDecay = Annotated[float, Field(ge=0.0, le=10.0)]


class UnusualLearningRateWarning(UserWarning):
    """A learning rate outside of the range in which its optimizer is known to work."""


class AdamWSettings(Section):
    """AdamW for every parameter."""

    name: Literal["adamw"]
    lr: LearningRate
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    eps: Epsilon = 1e-8
    weight_decay: WeightDecay = 0.0
    """Applied to matrices, not to norms and biases."""
    allow_unusual_lr: bool = False

    @model_validator(mode="after")
    def _guard(self) -> AdamWSettings:
        _warn_outside("lr", self.lr, "AdamW", self.allow_unusual_lr)
        return self


class MuonBase(Section):
    """Muon for hidden matrices, AdamW for embeddings, heads, norms and biases."""

    lr: LearningRate
    """For the hidden matrices."""
    adamw_lr: LearningRate
    """For all other parameters."""
    scale: Literal["original", "match_rms"]
    """``original``: sqrt(max(1, rows/columns)). ``match_rms``: 0.2 sqrt(max(rows, columns))."""
    momentum: Decay = 0.95
    weight_decay: WeightDecay = 0.0
    adamw_betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    adamw_eps: Epsilon = 1e-8
    allow_unusual_lr: bool = False

    @model_validator(mode="after")
    def _guard(self) -> MuonBase:
        low, high = MUON_ORIGINAL_RANGE
        if self.scale == "match_rms":
            _warn_outside("lr", self.lr, "Muon with scale match_rms", self.allow_unusual_lr)
        elif not low <= self.lr <= high and not self.allow_unusual_lr:
            raise ValueError(
                f"lr {self.lr:g} is outside {low:g}..{high:g}, where Muon with scale original"
                " trains; a rate meant for AdamW leaves its weights almost still."
                f" Set lr within the range, or allow_unusual_lr: true if you mean it"
            )
        _warn_outside("adamw_lr", self.adamw_lr, "AdamW", self.allow_unusual_lr)
        return self


class MuonSettings(MuonBase):
    """Muon with Nesterov momentum."""

    name: Literal["muon"]
    nesterov: bool = True


class MuonClipSettings(MuonBase):
    """Muon without Nesterov, and attention logits kept under a threshold (Kimi K2)."""

    name: Literal["muonclip"]
    qk_clip_threshold: Annotated[float, Field(ge=1e-3, le=1e6)] = 100.0


OptimizerSettings = Annotated[
    AdamWSettings | MuonSettings | MuonClipSettings, Field(discriminator="name")
]


class ScheduleSettings(Section):
    """Learning rate over steps: linear warmup, then a decay to a fraction of the peak."""

    kind: Literal["cosine", "linear", "constant"]
    warmup_steps: StepsOrZero
    final_lr_fraction: Fraction


class ZClipSettings(Section):
    """Adaptive clipping of the gradient norm by its z-score (arXiv 2504.02507)."""

    enabled: bool
    z_threshold: Annotated[float, Field(gt=0.0, le=1000.0)] = 3.0
    ema_decay: Decay = 0.99
    warmup_steps: Steps = 25
    """Steps that only gather statistics."""
    reopen_after: Steps = 20
    """Consecutive clips after which the statistics are gathered anew."""


def _warn_outside(key: str, value: float, what: str, allowed: bool) -> None:
    low, high = ADAMW_RANGE
    if not allowed and not low <= value <= high:
        warnings.warn(
            f"{key} {value:g} is outside {low:g}..{high:g}, where {what} is known to train",
            UnusualLearningRateWarning,
            stacklevel=2,
        )
