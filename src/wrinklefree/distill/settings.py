"""What a teacher adds to the loss: ``distill``, and ``stage2.distillation``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrinklefree.schema.section import (
    Fraction,
    Heads,
    NonNegativeFloat,
    Section,
    Temperature,
)

HiddenDistance = Literal["normalized_mse", "cosine"]
Direction = Literal["forward", "reverse", "confidence"]


class RelationSettings(Section):
    """Distillation of Q, K and V relations (arXiv 2510.13998, section 3.3, of one late layer)."""

    layer_fractions: Annotated[list[Fraction], Field(min_length=1)] = [0.8]
    """Depths of the layers that are compared: 0.8 of 28 layers is layer 22. The term is the mean
    over them."""
    heads: Heads
    """Relation heads, independent of the number of attention heads."""
    temperature: Temperature = 1.0
    """Softens both relations before they are compared."""
    causal: bool
    """Compare each token only with itself and those before it."""


class HiddenSettings(Section):
    """Distillation of hidden states.

    Where the teacher's have other widths, the student's are mapped to them first, by the linear map
    that fits each micro-batch best.
    """

    layer_fractions: Annotated[list[Fraction], Field(min_length=1)] = [0.25, 0.5, 0.75, 1.0]
    """Depths of the layers that are compared: 0.5 of 28 layers is layer 14, 1 the last one."""
    distance: HiddenDistance = "normalized_mse"
    """``normalized_mse``: squared error over the teacher's square; ``cosine``: directions only."""


class DistillationWeights(Section):
    """Factors of the terms of the loss."""

    cross_entropy: NonNegativeFloat = 1.0
    """Weight of the text itself."""
    logits: NonNegativeFloat = 1.0
    """Weight of the teacher's distribution over the next token."""
    relations: NonNegativeFloat = 1.0
    """Weight of the teacher's relations between tokens."""
    hidden: NonNegativeFloat = 0.0
    """Weight of the teacher's hidden states."""
