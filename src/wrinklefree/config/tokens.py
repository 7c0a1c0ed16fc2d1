"""``tokenizer``, ``tokenize`` and ``mixture``: text to tokens, and tokens to training rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from wrinklefree.config.section import Name, NonNegativeFloat, Rows, Section, Workers

MINIMUM_BPE_VOCABULARY = 300
LONGEST_ROW = 1 << 20
"""Attention within a row costs the square of its length; far above it not even one row fits."""
WEIGHT_TOLERANCE = 1e-6


def _sum_to_one(weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    if abs(total - 1.0) > WEIGHT_TOLERANCE:
        raise ValueError(f"weights sum to {total:.6g}, expected 1")
    return weights


Weights = Annotated[dict[Name, NonNegativeFloat], AfterValidator(_sum_to_one)]
"""Share of the training tokens per domain; they sum to 1."""


class BpeTokenizerSettings(Section):
    """A byte-level BPE trained on the training split of all sources."""

    kind: Literal["bpe"]
    vocabulary_size: Annotated[int, Field(ge=MINIMUM_BPE_VOCABULARY, le=1 << 20)]
    """All ids, special tokens included."""
    max_megabytes_per_source: Annotated[int, Field(gt=0, le=10**6)]
    """Text read from each source for training it."""


class BaseTokenizerSettings(Section):
    """The tokenizer that comes with the base model."""

    kind: Literal["base"]


TokenizerSettings = Annotated[
    BpeTokenizerSettings | BaseTokenizerSettings, Field(discriminator="kind")
]


class TokenizeSettings(Section):
    """How the documents of a source are divided among files and processes."""

    shard_megabytes: Annotated[int, Field(gt=0, le=1 << 16)] = 64
    """Text of a shard, in MB of UTF-8: what is encoded anew when the stage was killed."""
    processes: Workers | Literal["all"] = "all"
    """How many shards are encoded at the same time, each by a process of its own.

    ``all``: one per core. With 1 the stage's own process encodes, on all cores, as it does for a
    source of one shard. Has no effect on the result.
    """


class MixtureSettings(Section):
    """How tokens of all domains become rows, and in which order training sees the rows."""

    sequence_length: Annotated[int, Field(ge=8, le=LONGEST_ROW)]
    """Tokens of a row."""
    shuffle_buffer_size: Rows = 50_000
    """Rows of a domain are permuted inside windows of this many rows."""
    weights: Weights
    """Share of the training tokens per domain; 0: measured and not trained on."""
    max_repetition: Annotated[float, Field(gt=0.0, le=1000.0)] = 4.0
    """A training stage that would read a domain's rows more often than this is refused.

    Up to four epochs repeated text is nearly as good as new (arXiv 2305.16264).
    """
