"""``synthesize``: text that a teacher writes for a student's next run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wrinklefree.downloads.settings import BroughtSource
from wrinklefree.schema.section import PositiveInt, RowsAtOnce, Section, Temperature


class SynthesizeSettings(Section):
    """Documents that a dense model continues, chosen where the student is worse than it."""

    teacher: BroughtSource
    """The model that writes, with a tokenizer of its own."""
    documents: PositiveInt = 500
    """Number of documents to write."""
    prompts: Literal["excess", "uniform"] = "excess"
    """How candidates are chosen. ``excess``: in proportion to how much the student's loss is above
    the teacher's. ``uniform``: all alike."""
    candidates: PositiveInt = 500
    """Number of training documents to choose from, of all sources in proportion to their size."""
    candidate_characters: Annotated[int, Field(ge=64, le=1 << 16)] = 1000
    """Characters of a candidate on which the losses of student and teacher are measured."""
    prompt_tokens: Annotated[int, Field(gt=0, le=1 << 16)] = 32
    """Tokens of a candidate, by the teacher's tokenizer, that a document begins with."""
    new_tokens: Annotated[int, Field(gt=0, le=1 << 16)] = 224
    """Largest number of tokens that the teacher adds."""
    least_new_tokens: Annotated[int, Field(gt=0, le=1 << 16)] = 16
    """Continuations with fewer tokens are left out, and counted."""
    temperature: Temperature = 1.0
    """Temperature at which the teacher is sampled."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Draw only from the likeliest tokens that have this probability together."""
    batch_size: RowsAtOnce = 8
    """Documents that are written at once."""

    @model_validator(mode="after")
    def _some_are_long_enough(self) -> Self:
        if self.least_new_tokens > self.new_tokens:
            raise ValueError(
                f"least_new_tokens is {self.least_new_tokens} and new_tokens {self.new_tokens}:"
                " every continuation would be left out; lower the one or raise the other"
            )
        return self
