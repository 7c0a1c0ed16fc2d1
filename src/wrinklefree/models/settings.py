"""``base.scratch.model`` and ``subln``: the shape of a model, and how it is made ternary."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.schema.section import Heads, Precision, RowsAtOnce, Section


class ExpertsSettings(Section):
    """Feed-forward networks of which every token takes some."""

    count: Annotated[int, Field(ge=2, le=4096)]
    """Experts of a layer."""
    per_token: Annotated[int, Field(ge=2, le=4096)]
    """Experts that each token takes, weighted by their probabilities; at least 2, because the
    weights of one are always 1 and teach its router nothing."""
    intermediate_size: Annotated[int, Field(gt=0, le=1 << 18)]
    """Features inside of an expert."""

    @model_validator(mode="after")
    def _there_are_as_many(self) -> ExpertsSettings:
        if self.per_token > self.count:
            raise ValueError(
                f"per_token is {self.per_token} and count {self.count}: a token can't take more"
                " experts than there are; lower one or raise the other"
            )
        return self


class StateSpaceSettings(Section):
    """Layers with a state in place of attention: Mamba-2 mixers (arXiv 2405.21060), as in Bamba."""

    attention_layers: Annotated[list[Annotated[int, Field(ge=0, lt=1000)]], Field(min_length=1)]
    """Numbers, from 0, of the decoder layers that keep attention; all others get a mixer."""
    heads: Heads
    """Heads of a mixer, each of ``2 hidden_size / heads`` features."""
    state_size: Annotated[int, Field(gt=0, le=1 << 12)] = 64
    """Numbers that the state holds for each feature."""


class ModelSettings(Section):
    """The shape of a Llama-like model trained from scratch."""

    hidden_size: Annotated[int, Field(gt=0, le=1 << 16)]
    """Features of a token between layers."""
    intermediate_size: Annotated[int, Field(gt=0, le=1 << 18)]
    """Features inside the feed-forward network. Has no effect with ``experts``."""
    experts: ExpertsSettings | None = None
    """Experts in place of the feed-forward network of every layer. The model is then a Qwen3-MoE,
    whose queries and keys have norms. Default: no experts, a Llama-like model."""
    state_space: StateSpaceSettings | None = None
    """Mixers with a state in place of the attention of most layers. The model is then a Bamba,
    whose rotary embeddings turn half of a head. Default: attention in every layer."""
    layers: Annotated[int, Field(gt=0, le=1000)]
    """Decoder layers."""
    heads: Heads
    """Attention heads of queries."""
    key_value_heads: Heads
    """Attention heads of keys and values, each shared by equally many queries."""
    rope_theta: Annotated[float, Field(ge=1.0, le=1e12)] = 10_000.0
    """Base of the rotary embeddings' wavelengths."""
    initialization: Literal["normal", "small"] = "normal"
    """Standard deviation of the initial weights. ``normal``: ``initializer_range``. ``small``:
    sqrt(2 / (5 hidden_size)), divided by sqrt(2 layers) for matrices that add to the residual
    stream (arXiv 2312.16903)."""
    initializer_range: Annotated[float, Field(ge=1e-6, le=10.0)] = 0.02
    """Standard deviation of the initial weights with ``normal``."""
    scaled_embedding: bool = False
    """Embeddings of standard deviation 1, and a head with weights of its own. A tied head would
    predict that each token repeats."""

    @property
    def initial_deviation(self) -> float:
        """Standard deviation of the initial weights, before what is scaled of them."""
        small = math.sqrt(2 / (5 * self.hidden_size))
        return small if self.initialization == "small" else self.initializer_range

    @property
    def more_in_mixers(self) -> int:
        """How many weights its mixers have more than attention in their place would."""
        if not (mixers := self.state_space):
            return 0
        inside = 2 * self.hidden_size
        mixer = 3 * inside + 2 * mixers.state_size + mixers.heads
        attention = 2 * (self.heads + self.key_value_heads) * (self.hidden_size // self.heads)
        return (self.layers - len(mixers.attention_layers)) * self.hidden_size * (mixer - attention)

    @model_validator(mode="after")
    def _heads_fit(self) -> ModelSettings:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over heads {self.heads}: expected an even number"
                " of features per head, for rotary embeddings turn them in pairs"
            )
        if self.heads % self.key_value_heads:
            raise ValueError(
                f"heads {self.heads} is no multiple of key_value_heads {self.key_value_heads}:"
                " every key must serve equally many queries"
            )
        return self

    @model_validator(mode="after")
    def _mixers_fit(self) -> ModelSettings:
        if not (mixers := self.state_space):
            return self
        if self.experts:
            raise ValueError("state_space and experts are both given; leave out one")
        attention = mixers.attention_layers
        if sorted(set(attention)) != attention or not attention[-1] < self.layers > len(attention):
            raise ValueError(
                f"state_space.attention_layers is {attention}: expected some numbers of layers from"
                f" 0 to {self.layers - 1}, but not all, each once and in order"
            )
        if 2 * self.hidden_size % mixers.heads:
            raise ValueError(
                f"state_space.heads is {mixers.heads}, which does not divide twice the hidden_size"
                f" {self.hidden_size}"
            )
        if self.hidden_size // self.heads % 4:
            raise ValueError(
                f"hidden_size {self.hidden_size} over heads {self.heads}: with state_space expected"
                " a multiple of 4 features per head, half of which turn in pairs"
            )
        return self


class PruneSettings(Section):
    """What remains of the dense model before it is made ternary; the whole one goes on teaching."""

    layers: Annotated[int, Field(gt=0, le=1000)] | None = None
    """Number of decoder layers to keep: those that rotate hidden states most. Default: all."""
    intermediate_size: Annotated[int, Field(gt=0, le=1 << 18)] | None = None
    """Number of features to keep in each feed-forward network: those that add most. Default:
    all."""

    def beyond(self, whose: str, layers: int, intermediate_size: int) -> str | None:
        """What is wrong, where more shall remain than there is of ``whose``."""
        for name, wanted, present in (
            ("layers", self.layers, layers),
            ("intermediate_size", self.intermediate_size, intermediate_size),
        ):
            if wanted is not None and wanted > present:
                return (
                    f"subln.prune.{name} is {wanted}, but {whose} has {present}; lower it, or leave"
                    " it out to keep all"
                )
        return None


class ReconstructSettings(Section):
    """Ternary decoder layers trained one after the other to give what the dense ones give."""

    kind: Literal["none", "layers"] = "none"
    """``none``: no such training. ``layers``: every layer learns the outputs of the dense model's
    layer, from the outputs of the trained layers before it."""
    rows: Annotated[int, Field(gt=0, le=10**5)] = 64
    """Number of training rows."""
    epochs: Annotated[int, Field(gt=0, le=10**4)] = 2
    """How often every layer sees these rows."""
    batch_size: RowsAtOnce = 2
    """Rows per step."""
    lr: Annotated[float, Field(gt=0, le=0.1)] = 0.004
    """Learning rate of AdamW. For every layer it rises over 5 steps, and falls to 0."""
    precision: Precision = "auto"
    """Data type that products are computed in. ``auto``: bfloat16 where the machine multiplies it
    faster."""


class MixtureOfDepthsSettings(Section):
    """Layers that compute some tokens of a row; the others pass by (arXiv 2404.02258)."""

    every: Annotated[int, Field(ge=2, le=1000)] = 2
    """One layer in this many leaves tokens out, the last one of them."""
    capacity: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a row's tokens that such a layer computes. It is exact in training."""


class SublnSettings(Section):
    """RMSNorm before ``o_proj`` and ``down_proj``, and linear layers that quantize."""

    gain: Literal["calibrated", "calibrated_scalar", "ones", "none"] = "calibrated"
    """Initial gains of the norms. ``calibrated``: fitted, one for each channel.
    ``calibrated_scalar``: fitted, one for each norm. ``ones``: all 1, as in the paper. ``none``:
    no norms, so that the model runs wherever its dense architecture does."""
    calibration_rows: Annotated[int, Field(gt=0, le=10**6)] = 32
    """Number of training rows to fit gains on, and of held-out rows to measure losses on."""
    prune: PruneSettings = PruneSettings()
    """What is removed first: whole layers, and features of the feed-forward networks."""
    mixture_of_depths: MixtureOfDepthsSettings | None = None
    """Layers that leave tokens out, from the next stage on. Default: no such layers."""
    reconstruct: ReconstructSettings = ReconstructSettings()
    """Whether ternary layers are trained one after the other, as a start for stage 2."""
    quantizer: QuantizerSettings = QuantizerSettings()
    """How their weights become ternary, here and in every stage that trains or reads the model."""

    @property
    def has_norms(self) -> bool:
        """Whether there is SubLN."""
        return self.gain != "none"

    @model_validator(mode="after")
    def _layers_are_reconstructed_whole(self) -> SublnSettings:
        if self.mixture_of_depths and self.reconstruct.kind != "none":
            raise ValueError(
                "mixture_of_depths and reconstruct are both given, but layers are reconstructed"
                " from all tokens; leave out one"
            )
        return self
