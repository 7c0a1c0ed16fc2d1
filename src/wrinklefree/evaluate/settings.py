"""``data_report`` and ``evaluate``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wrinklefree.schema.section import LONGEST_ROW, Rows, RowsAtOnce, Section


class DataReportSettings(Section):
    """What the report on the data shows beside all counts."""

    samples_per_domain: Annotated[int, Field(ge=0, le=1000)] = 3
    """Training documents of every domain whose beginning is shown."""
    share_samples: Rows = 100_000
    """Length of the run, in rows, over which realised shares and epochs are counted."""
    read_samples: Rows = 4096
    """Number of first rows of that run to read, to count the tokens that training really gets."""


class EvaluateSettings(Section):
    """The comparison of every model of the run."""

    rows_per_domain: Rows
    """Held-out rows scored per domain, at most."""
    batch_size: RowsAtOnce = 8
    """Rows at a time, which bounds memory."""
    likelihood_draws: Annotated[int, Field(gt=0, le=10_000)] = 4
    """Random maskings per block when the likelihood of a diffusion model is estimated."""
    prompts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """Prompts that every model continues."""
    new_tokens: Annotated[int, Field(ge=0, le=LONGEST_ROW)] = 40
    """Tokens generated for every prompt."""
