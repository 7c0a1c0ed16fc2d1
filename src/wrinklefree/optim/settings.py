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

from wrinklefree.schema.reads import OptimizerName
from wrinklefree.schema.section import (
    Decay,
    Epsilon,
    Fraction,
    LearningRate,
    Section,
    StepsOrZero,
)

Range = tuple[float, float]
USUAL_RATES: dict[tuple[str, str | None], Range] = {
    ("AdamW", None): (5e-5, 1e-3),
    ("AdamW beside Muon", None): (3e-4, 1e-2),
    ("Muon", "original"): (1e-3, 3e-3),
    ("Muon", "match_rms"): (5e-5, 1e-2),
    ("APOLLO", None): (5e-5, 1e-2),
    ("AdamW beside APOLLO", None): (5e-5, 3e-3),
}
"""Rates at which each optimizer is known to train, by its name and ``scale``.

From what full sizes take to what models of a few million parameters do best with (docs/LOG.md). A
norm or an embedding whose rate is below 3e-4 beside Muon's stays almost where it is. APOLLO's
updates are smaller than AdamW's; its authors pretrain with 1e-2.
"""
WeightDecay = Annotated[float, Field(ge=0.0, le=10.0)]
Betas = Annotated[list[Decay], Field(min_length=2, max_length=2)]


class UnusualLearningRateWarning(UserWarning):
    """A learning rate outside of the range in which its optimizer is known to work."""


def _guard(key: str, value: float, what: str, scale: str | None = None) -> None:
    """Warn of an unusual rate, or refuse it where it is a known and expensive mistake."""
    low, high = USUAL_RATES[what, scale]
    if low <= value <= high:
        return
    if scale == "original":
        raise ValueError(
            f"{key} {value:g} is outside {low:g}..{high:g}, where {what} with scale original"
            " trains; a rate meant for AdamW leaves its weights almost still."
            f" Set {key} within the range, or allow_unusual_lr: true if you mean it"
        )
    what = f"{what} with scale {scale}" if scale else what
    warnings.warn(
        f"{key} {value:g} is outside {low:g}..{high:g}, where {what} is known to train",
        UnusualLearningRateWarning,
        stacklevel=2,
    )


class AdamWSettings(Section):
    """AdamW for every parameter."""

    lr: LearningRate = 1e-3
    """Peak learning rate."""
    betas: Betas = [0.9, 0.95]
    """Weight of the past in the running means of the gradient and of its square."""
    eps: Epsilon = 1e-8
    """Added to the root of the mean square."""
    weight_decay: WeightDecay = 0.0
    """Applied to hidden matrices and routers."""
    allow_unusual_lr: bool = False
    """Allow a learning rate outside of the usual range."""

    @model_validator(mode="after")
    def _usual_rate(self) -> AdamWSettings:
        if not self.allow_unusual_lr:
            _guard("lr", self.lr, "AdamW")
        return self


class BesideAdamW(Section):
    """An optimizer for hidden matrices, and AdamW for embeddings, heads, norms and biases."""

    lr: LearningRate = 1e-3
    """Peak learning rate of the hidden matrices."""
    adamw_lr: LearningRate = 1e-3
    """Peak learning rate of all other parameters."""
    weight_decay: WeightDecay = 0.0
    """Applied to the hidden matrices."""
    adamw_betas: Betas = [0.9, 0.95]
    """``betas`` of AdamW."""
    adamw_eps: Epsilon = 1e-8
    """``eps`` of AdamW."""
    allow_unusual_lr: bool = False
    """Allow a learning rate outside of the usual range."""


class MuonBase(BesideAdamW):
    """Muon for hidden matrices, AdamW for embeddings, heads, norms and biases."""

    scale: Literal["original", "match_rms"] = "match_rms"
    """Factor of an update. ``original``: sqrt(max(1, rows/columns)). ``match_rms``: 0.2
    sqrt(max(rows, columns))."""
    momentum: Decay = 0.95
    """Weight of the past in the running mean of the gradient."""
    coefficients: Literal["classic", "polar_express"] = "classic"
    """Polynomials of the orthogonalization. ``polar_express`` comes closer to it, at the same
    cost."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Data type of the orthogonalization. ``auto``: bfloat16 where the machine multiplies it
    faster."""

    @model_validator(mode="after")
    def _usual_rates(self) -> MuonBase:
        if not self.allow_unusual_lr:
            _guard("lr", self.lr, "Muon", self.scale)
            _guard("adamw_lr", self.adamw_lr, "AdamW beside Muon")
        return self


class MuonSettings(MuonBase):
    """Muon with Nesterov momentum."""

    nesterov: bool = True
    """Use Nesterov momentum."""


class MuonClipSettings(MuonBase):
    """Muon without Nesterov, and attention logits kept under a threshold (Kimi K2)."""

    qk_clip_threshold: Annotated[float, Field(ge=1e-3, le=1e6)] = 100.0
    """The largest attention logit, after scaling by 1/sqrt(head size)."""


class NorMuonSettings(MuonBase):
    """Muon whose rows are normalised by their running mean square (arXiv 2510.05491)."""

    nesterov: bool = False
    """Use Nesterov momentum."""
    row_decay: Decay = 0.95
    """Weight of the past in the running mean square of each row."""


class Muon8bitSettings(MuonSettings):
    """Muon with its momentum in eight bits (arXiv 2509.23106)."""

    quantization: Literal["linear", "dynamic"] = "linear"
    """Codes of the momentum: evenly spaced, or finer towards zero."""


class ApolloMiniSettings(BesideAdamW):
    """AdamW's step sizes estimated by a projection to one row (arXiv 2412.05270)."""

    @model_validator(mode="after")
    def _usual_rates(self) -> ApolloMiniSettings:
        if not self.allow_unusual_lr:
            _guard("lr", self.lr, "APOLLO")
            _guard("adamw_lr", self.adamw_lr, "AdamW beside APOLLO")
        return self


class ApolloSettings(ApolloMiniSettings):
    """AdamW's step sizes estimated by a random projection (arXiv 2412.05270)."""

    rank: Annotated[int, Field(gt=0, le=1 << 16)] = 64
    """Rows of the projection; the paper takes a quarter of the hidden size."""


class OptimizerSettings(Section):
    """Which optimizer trains, and a block of settings for each.

    Only the block of the chosen one counts; the others are validated and have no effect.
    """

    name: OptimizerName
    """The optimizer that trains."""
    adamw: AdamWSettings = AdamWSettings()
    """AdamW for every parameter."""
    muon: MuonSettings = MuonSettings()
    """Muon with Nesterov momentum for hidden matrices, AdamW for the rest."""
    muonclip: MuonClipSettings = MuonClipSettings()
    """Muon without Nesterov, and attention logits kept under a threshold."""
    normuon: NorMuonSettings = NorMuonSettings()
    """Muon whose rows are normalised by their running mean square, AdamW for the rest."""
    muon8bit: Muon8bitSettings = Muon8bitSettings()
    """Muon with its momentum in eight bits, AdamW for the rest."""
    apollo: ApolloSettings = ApolloSettings()
    """AdamW's step sizes estimated by a random projection, AdamW for the rest."""
    apollo_mini: ApolloMiniSettings = ApolloMiniSettings()
    """AdamW's step sizes estimated by a projection to one row, AdamW for the rest."""
    adamw8bit: AdamWSettings = AdamWSettings()
    """AdamW with eight-bit moments for hidden matrices, full ones for the rest."""

    @model_validator(mode="before")
    @classmethod
    def _settings_stand_in_blocks(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            fields = cls.model_fields
            blocks = {n: f.default for n, f in fields.items() if isinstance(f.default, Section)}
            owners = [name for name, block in blocks.items() if key in type(block).model_fields]
            if owners and key not in fields:
                raise ValueError(
                    f"{key} stands in the block of an optimizer: write {owners[0]}: {{{key}: …}},"
                    f" for each optimizer has its own ({', '.join(owners)})"
                )
        return given

    @property
    def chosen(self) -> AdamWSettings | BesideAdamW:
        """The block of the optimizer that trains."""
        return getattr(self, self.name)


class ScheduleSettings(Section):
    """Learning rate over steps: linear warmup, then a decay to a fraction of the peak."""

    kind: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """Shape of the decay. ``wsd``: the peak rate (warmup, stable), then a linear decay."""
    warmup_steps: StepsOrZero
    """Steps over which the rate rises to its peak."""
    final_lr_fraction: Fraction = 0.1
    """Rate at the end, as a share of the peak. Has no effect with ``constant``."""
    decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Share of the steps, at the end, in which ``wsd`` decays."""
