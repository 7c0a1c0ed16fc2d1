"""The base of every section of ``params.yaml``, and the types that sections share.

Every number is bounded, so that no valid setting overflows 64-bit arithmetic, asks for memory that
no machine has, or switches off by its size what has a switch of its own. The bounds are far above
what makes sense; fields whose meaning asks for it have narrower ones.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST = 10**15
"""A quadrillion: beyond all text there is, counted in characters."""
MOST_STEPS = 10**8
MOST_WORKERS = 4096
"""Threads, processes or tasks at a time."""
MOST_ROWS_AT_ONCE = 1 << 16
LONGEST_ROW = 1 << 20
"""Attention within a row costs the square of its length; far above it not even one row fits."""
LONGEST_NAME = 64
LONGEST_TEXT = 100_000
"""Characters of any text in the settings."""

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Weight of the past in a running mean; with 1 nothing new would ever count."""
PositiveInt = Annotated[int, Field(gt=0, le=MOST)]
NonNegativeInt = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Steps = Annotated[int, Field(gt=0, le=MOST_STEPS)]
"""Optimizer steps, or the interval between two events."""
StepsOrZero = Annotated[int, Field(ge=0, le=MOST_STEPS)]
RowsAtOnce = Annotated[int, Field(gt=0, le=MOST_ROWS_AT_ONCE)]
Rows = Annotated[int, Field(gt=0, le=10**9)]
"""Rows whose numbers or losses are held in memory."""
Workers = Annotated[int, Field(gt=0, le=MOST_WORKERS)]
Ngram = Annotated[int, Field(gt=0, le=100)]
"""Words in a row; hardly any text has more of them in common with another, so more is off."""
Heads = Annotated[int, Field(gt=0, le=4096)]
PositiveFloat = Annotated[float, Field(gt=0.0, le=1e12)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, le=1e6)]
LearningRate = Annotated[float, Field(gt=0.0, le=10.0)]
Epsilon = Annotated[float, Field(ge=1e-20, le=1.0)]
"""Added to a denominator; below, it would vanish in fp32."""
Temperature = Annotated[float, Field(ge=0.01, le=100.0)]
Precision = Literal["auto", "fp32", "bfloat16"]
"""Of products; ``auto``: bfloat16 where the machine multiplies it faster."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=LONGEST_NAME)]
COMMIT = r"^[0-9a-f]{40}$"
"""Of a repository, by all of its digits."""
Commit = Annotated[str, Field(pattern=COMMIT)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
PackageWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=128)]
"""Name or version of a package: one word, since it becomes part of a line that pip reads."""


class Section(BaseModel):
    """An immutable group of settings; unknown keys and silent conversions are refused.

    So are NaN and infinity, which no manifest can record.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        str_max_length=LONGEST_TEXT,
    )
