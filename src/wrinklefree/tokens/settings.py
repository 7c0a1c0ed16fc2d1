"""``tokenizer`` and ``tokenize``: text to tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from wrinklefree.schema.section import (
    Section,
    Workers,
)

MINIMUM_BPE_VOCABULARY = 300


class BpeTokenizerSettings(Section):
    """A byte-level BPE trained on the training split of all sources."""

    kind: Literal["bpe"]
    vocabulary_size: Annotated[int, Field(ge=MINIMUM_BPE_VOCABULARY, le=1 << 20)]
    """Number of token ids, special tokens included."""
    max_megabytes_per_source: Annotated[int, Field(gt=0, le=10**6)]
    """Text of each source to train the tokenizer on, in MB."""


class BaseTokenizerSettings(Section):
    """The tokenizer that comes with the base model."""

    kind: Literal["base"]


TokenizerSettings = Annotated[
    BpeTokenizerSettings | BaseTokenizerSettings, Field(discriminator="kind")
]


class TokenizeSettings(Section):
    """How the documents of a source are divided among files and processes."""

    shard_megabytes: Annotated[int, Field(gt=0, le=1 << 16)] = 64
    """Text of a shard, in MB of UTF-8. After a kill, only unfinished shards are encoded again."""
    processes: Workers | Literal["all"] = "all"
    """How many shards are encoded at the same time, each by a process of its own.

    ``all``: one per core. With 1 the stage's own process encodes, on all cores, as it does for a
    source of one shard. Has no effect on the result.
    """
