"""``distill``: the terms of the loss."""

from __future__ import annotations

from pydantic import model_validator

from wrinklefree.schema.section import (
    Fraction,
    Heads,
    NonNegativeFloat,
    Section,
    Temperature,
)


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
    """Weight of the text itself."""
    logits: NonNegativeFloat = 1.0
    """Weight of the teacher's distribution over the next token."""
    relations: NonNegativeFloat = 1.0
    """Weight of the teacher's relations between tokens."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> DistillationWeights:
        if not (self.cross_entropy or self.logits or self.relations):
            raise ValueError("all weights are 0, so nothing would be trained; raise one of them")
        return self
