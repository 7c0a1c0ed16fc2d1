"""``stage2.future_tokens`` and ``distill.ar.future_tokens``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from wrinklefree.schema.section import PositiveFloat, Section


class FutureTokensSettings(Section):
    """Heads that predict the tokens after the next one, trained with the model."""

    heads: Annotated[int, Field(ge=0, le=16)] = 0
    """Number of heads. The first predicts the token after the next one. A distillation goes on with
    its student's heads if there are as many of them, else with new ones. 0: no heads."""
    weight: PositiveFloat = 0.3
    """Weight of their mean cross-entropy in the loss."""
