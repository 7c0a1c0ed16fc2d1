"""The loss of a model that has learned nothing yet."""

from __future__ import annotations

import math

from wrinklefree.errors import UserError

TOLERANCE = 0.1
"""Relative."""


def check_initial_loss(loss: float, vocabulary_size: int) -> None:
    """Check the first loss of a from-scratch model, whose guess costs the log of the vocabulary.

    Parameters
    ----------
    loss : mean cross-entropy in nats per token, before the first optimizer step.

    Raises
    ------
    UserError : the loss is more than 10 % away from ``ln(vocabulary_size)``, or not finite.
    """
    expected = math.log(vocabulary_size)
    # Written so that NaN fails.
    if not abs(loss - expected) <= TOLERANCE * expected:
        cause = (
            "the model already knows its targets: they leak into the inputs, or it is not untrained"
            if loss < expected
            else "its logits are too large: lower initializer_range"
        )
        raise UserError(
            f"the first loss of the untrained model is {loss:.4g} nats per token; expected"
            f" {expected:.4g} within {TOLERANCE:.0%}, the logarithm of the vocabulary of"
            f" {vocabulary_size}. Probably {cause}"
        )
