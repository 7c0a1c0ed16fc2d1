"""``stage2.future_tokens`` and ``distill.ar.future_tokens``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wrinklefree.schema.section import PositiveFloat, Section


class FutureTokensSettings(Section):
    """Heads that predict tokens behind the next one, trained with the model."""

    heads: Annotated[int, Field(ge=0, le=16)] = 0
    """How many: the first predicts the token behind the next one. A distillation goes on with those
    of its student, if these are as many, and leaves them out with 0."""
    weight: PositiveFloat = 0.3
    """Of their mean cross-entropy in the loss."""
