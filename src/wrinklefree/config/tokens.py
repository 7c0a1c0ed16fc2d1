"""``tokenizer`` and ``mixture``: text to tokens, and tokens to training rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from wrinklefree.config.section import Name, NonNegativeFloat, PositiveInt, Section

MINIMUM_BPE_VOCABULARY = 300
WEIGHT_TOLERANCE = 1e-6


class BpeTokenizerSettings(Section):
    """A byte-level BPE trained on the training split of all sources."""

    kind: Literal["bpe"]
    vocabulary_size: Annotated[int, Field(ge=MINIMUM_BPE_VOCABULARY, le=2**32)]
    """All ids, special tokens included."""
    max_megabytes_per_source: PositiveInt
    """Text read from each source for training it."""


class BaseTokenizerSettings(Section):
    """The tokenizer that comes with the base model."""

    kind: Literal["base"]


TokenizerSettings = Annotated[
    BpeTokenizerSettings | BaseTokenizerSettings, Field(discriminator="kind")
]


class MixtureSettings(Section):
    """How tokens of all domains become rows, and in which order training sees the rows."""

    sequence_length: Annotated[int, Field(ge=8)]
    shuffle_buffer_size: PositiveInt
    """Rows of a domain are permuted inside windows of this many rows."""
    weights: dict[Name, NonNegativeFloat]
    """Share of the training tokens per domain; they sum to 1."""

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> MixtureSettings:
        total = sum(self.weights.values())
        if abs(total - 1.0) > WEIGHT_TOLERANCE:
            raise ValueError(f"weights sum to {total:.6g}, expected 1")
        return self
