"""What a teacher adds to a training: ``distill``, and ``stage2.distillation``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from wrinklefree.distill.settings import (
    Direction,
    DistillationWeights,
    HiddenSettings,
    RelationSettings,
)
from wrinklefree.quant.settings import LambdaWarmupSettings
from wrinklefree.schema.section import Name, PositiveFloat, Section, Temperature
from wrinklefree.train.future_tokens_settings import FutureTokensSettings
from wrinklefree.train.gradient_ratio_settings import GradientRatioSettings
from wrinklefree.train.settings import QuantizedTrainingSettings

BASE = "base"
"""The dense model of the run."""


class DistillationSettings(Section):
    """The terms of a loss with a teacher."""

    teachers: Annotated[dict[Name, PositiveFloat], Field(min_length=1)] = {BASE: 1.0}
    """Who teaches: ``base`` or names of ``teachers``, each with the weight of its part in every
    term."""
    weights: DistillationWeights = DistillationWeights()
    """Factors of the terms of the loss."""
    temperature: Temperature = 2.0
    """Softens both distributions of the logits term."""
    universal: bool = False
    """Allow teachers with other tokenizers. The logits term then compares sorted probabilities,
    where tokens of both begin at the same byte (ULD, arXiv 2402.12030), and ``direction`` has no
    effect."""
    temperature_squared: bool = True
    """Multiply the logits term by temperature squared, as the paper's code does and its text does
    not."""
    direction: Direction = "forward"
    """Direction of the logits term. ``forward``: KL(teacher || student). ``reverse``: KL(student ||
    teacher). ``confidence``: a mean of both, in which the reverse one has the teacher's probability
    of the text's token as its weight."""
    cached_logits: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Number of the teacher's likeliest tokens to store for every position before training begins;
    all others are stored as one. The teacher then leaves memory. 0: store nothing and run the
    teacher in every step."""
    relations: RelationSettings | None = None
    """The relations term; needed unless its weight is 0."""
    hidden: HiddenSettings = HiddenSettings()
    """The term of hidden states."""
    gradient_ratios: GradientRatioSettings = GradientRatioSettings()
    """Weights of terms by the ratio of gradients."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if not (any(self.weights.model_dump().values()) or self.gradient_ratios.targets):
            raise ValueError("all weights are 0, so nothing would be trained; raise one of them")
        return self

    @model_validator(mode="after")
    def _the_teacher_has_what_is_asked(self) -> Self:
        asked = {name for name, weight in self.weights if weight}
        looks_inside = {"relations", "hidden"} & {*asked, *self.gradient_ratios.targets}
        if self.universal and looks_inside:
            raise ValueError(
                "universal is for teachers with other tokenizers, which have no relations and no"
                " hidden states of the student's tokens (weights.relations: 0, weights.hidden: 0);"
                " leave those out, or universal"
            )
        if self.cached_logits and (looks_inside or self.direction == "confidence"):
            raise ValueError(
                f"cached_logits is {self.cached_logits}: then the teacher is not in memory, for"
                " relations and hidden states (weights.relations: 0, weights.hidden: 0) and for"
                " direction confidence; leave those out, or set cached_logits to 0"
            )
        return self

    @model_validator(mode="after")
    def _relations_are_described(self) -> Self:
        wanted = self.weights.relations or self.gradient_ratios.relations
        if wanted and self.relations is None:
            raise ValueError(
                f"the relations term has weight or ratio {wanted:g} and relations is missing: write"
                " relations: {heads: 32, causal: true}, or weights: {relations: 0}"
            )
        return self


class DistillSettings(QuantizedTrainingSettings, DistillationSettings):
    """Distillation of the dense teacher into a ternary student."""

    lambda_warmup: LambdaWarmupSettings = LambdaWarmupSettings(warmup_steps=0)
    """Quantization strength over steps; the student is ternary already."""

    @model_validator(mode="after")
    def _who_orders_rows_can_read_them(self) -> Self:
        if self.universal and self.data.order == "loss":
            raise ValueError(
                "data.order loss asks a teacher how hard the student's tokens are, and with"
                " universal it may not know them; use another order"
            )
        return self


class NextTokenDistillSettings(DistillSettings):
    """Distillation of the dense teacher into the autoregressive student."""

    future_tokens: FutureTokensSettings = FutureTokensSettings()
    """Heads that predict the tokens after the next one."""


class DistillStudents(Section):
    """One distillation per student."""

    ar: NextTokenDistillSettings
    """The autoregressive student."""
    dlm: DistillSettings
    """The diffusion student."""
