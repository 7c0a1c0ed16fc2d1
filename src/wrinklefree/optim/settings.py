"""Optimizers and their learning-rate guard.

``optimizer`` names one of the optimizers and has a block of settings for each, so that another name
is all it takes to change: every block has defaults that are right for its optimizer.

Muon's update has a size of its own, so a rate that is right for AdamW leaves the weights almost
still (an expensive way to learn nothing). The guard is keyed on (optimizer, scale).
"""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from wrinklefree.schema.section import (
    Decay,
    Epsilon,
    Fraction,
    LearningRate,
    Section,
    StepsOrZero,
)

ADAMW_RANGE = (5e-5, 1e-3)
MUON_ORIGINAL_RANGE = (1e-3, 3e-3)
MATCH_RMS_RANGE = (5e-5, 3e-3)
"""The usual rates of Muon with updates of AdamW's size, and of AdamW beside any Muon.

From what full sizes take to what models of a few million parameters do best with (docs/LOG.md).
"""
WeightDecay = Annotated[float, Field(ge=0.0, le=10.0)]


class UnusualLearningRateWarning(UserWarning):
    """A learning rate outside of the range in which its optimizer is known to work."""


def _warn_outside(
    key: str, value: float, what: str, bounds: tuple[float, float], allowed: bool
) -> None:
    low, high = bounds
    if not allowed and not low <= value <= high:
        warnings.warn(
            f"{key} {value:g} is outside {low:g}..{high:g}, where {what} is known to train",
            UnusualLearningRateWarning,
            stacklevel=2,
        )


class AdamWSettings(Section):
    """AdamW for every parameter."""

    lr: LearningRate = 1e-3
    """Peak learning rate."""
    betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    """Weight of the past in the running means of the gradient and of its square."""
    eps: Epsilon = 1e-8
    """Added to the root of the mean square."""
    weight_decay: WeightDecay = 0.0
    """Applied to matrices, not to norms and biases."""
    allow_unusual_lr: bool = False
    """Say nothing of a rate outside of the usual range."""

    @model_validator(mode="after")
    def _guard(self) -> AdamWSettings:
        _warn_outside("lr", self.lr, "AdamW", ADAMW_RANGE, self.allow_unusual_lr)
        return self


class MuonBase(Section):
    """Muon for hidden matrices, AdamW for embeddings, heads, norms and biases."""

    lr: LearningRate = 1e-3
    """Peak learning rate of the hidden matrices."""
    adamw_lr: LearningRate = 1e-3
    """Peak learning rate of all other parameters."""
    scale: Literal["original", "match_rms"] = "match_rms"
    """``original``: sqrt(max(1, rows/columns)). ``match_rms``: 0.2 sqrt(max(rows, columns))."""
    momentum: Decay = 0.95
    """Weight of the past in the running mean of the gradient."""
    weight_decay: WeightDecay = 0.0
    """Applied to the hidden matrices."""
    adamw_betas: Annotated[list[Decay], Field(min_length=2, max_length=2)] = [0.9, 0.95]
    """``betas`` of AdamW."""
    adamw_eps: Epsilon = 1e-8
    """``eps`` of AdamW."""
    allow_unusual_lr: bool = False
    """Say nothing of a rate outside of the usual range."""

    @model_validator(mode="after")
    def _guard(self) -> MuonBase:
        usual, allowed = MATCH_RMS_RANGE, self.allow_unusual_lr
        low, high = MUON_ORIGINAL_RANGE
        if self.scale == "match_rms":
            _warn_outside("lr", self.lr, "Muon with scale match_rms", usual, allowed)
        elif not low <= self.lr <= high and not allowed:
            raise ValueError(
                f"lr {self.lr:g} is outside {low:g}..{high:g}, where Muon with scale original"
                " trains; a rate meant for AdamW leaves its weights almost still."
                f" Set lr within the range, or allow_unusual_lr: true if you mean it"
            )
        _warn_outside("adamw_lr", self.adamw_lr, "AdamW beside Muon", usual, allowed)
        return self


class MuonSettings(MuonBase):
    """Muon with Nesterov momentum."""

    nesterov: bool = True
    """Look ahead along the momentum."""


class MuonClipSettings(MuonBase):
    """Muon without Nesterov, and attention logits kept under a threshold (Kimi K2)."""

    qk_clip_threshold: Annotated[float, Field(ge=1e-3, le=1e6)] = 100.0
    """The largest attention logit, after scaling by 1/sqrt(head size)."""


_BLOCKS: dict[str, type[Section]] = {
    "adamw": AdamWSettings,
    "muon": MuonSettings,
    "muonclip": MuonClipSettings,
}


class OptimizerSettings(Section):
    """Which optimizer trains, and a block of settings for each.

    Only the block of the chosen one counts; the others are validated and have no effect.
    """

    name: Literal["adamw", "muon", "muonclip"]
    """The optimizer that trains."""
    adamw: AdamWSettings = AdamWSettings()
    """AdamW for every parameter."""
    muon: MuonSettings = MuonSettings()
    """Muon with Nesterov momentum for hidden matrices, AdamW for the rest."""
    muonclip: MuonClipSettings = MuonClipSettings()
    """Muon without Nesterov, and attention logits kept under a threshold."""

    @model_validator(mode="before")
    @classmethod
    def _settings_stand_in_blocks(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            owners = [name for name, kind in _BLOCKS.items() if key in kind.model_fields]
            if owners and key not in cls.model_fields:
                raise ValueError(
                    f"{key} stands in the block of an optimizer: write {owners[0]}: {{{key}: …}},"
                    f" for each optimizer has its own ({', '.join(owners)})"
                )
        return given

    @property
    def chosen(self) -> AdamWSettings | MuonSettings | MuonClipSettings:
        """The block of the optimizer that trains."""
        return getattr(self, self.name)


class ScheduleSettings(Section):
    """Learning rate over steps: linear warmup, then a decay to a fraction of the peak."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay."""
    warmup_steps: StepsOrZero
    """Steps over which the rate rises to its peak."""
    final_lr_fraction: Fraction = 0.1
    """Rate at the end, as a share of the peak."""
