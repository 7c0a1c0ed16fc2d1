"""``synthesize``: text that a teacher writes for a student's next run."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wrinklefree.downloads.settings import BroughtSource
from wrinklefree.schema.section import PositiveInt, RowsAtOnce, Section, Temperature


class SynthesizeSettings(Section):
    """Documents that a dense model continues, chosen by where the student is behind it."""

    teacher: BroughtSource
    """The model that writes, with a tokenizer of its own."""
    documents: PositiveInt = 500
    """How many to write."""
    prompts: Literal["excess", "uniform"] = "excess"
    """Which candidates are continued: in proportion to how much more the student is surprised by
    them than the teacher, or all alike."""
    candidates: PositiveInt = 500
    """Training documents that may be continued, of all sources in proportion to their number."""
    candidate_characters: Annotated[int, Field(ge=64, le=1 << 16)] = 1000
    """How much of a candidate the student and the teacher are asked about."""
    prompt_tokens: Annotated[int, Field(gt=0, le=1 << 16)] = 32
    """The teacher's tokens of a candidate that begin a document."""
    new_tokens: Annotated[int, Field(gt=0, le=1 << 16)] = 224
    """Most tokens that the teacher adds."""
    least_new_tokens: Annotated[int, Field(gt=0, le=1 << 16)] = 16
    """A continuation that ends before is left out, and counted."""
    temperature: Temperature = 1.0
    """Of the teacher's distribution."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """Only the likeliest tokens that have this probability together are drawn."""
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
