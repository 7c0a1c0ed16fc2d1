"""A teacher's next-token distributions, shortened: the likeliest tokens, and all others as one.

Of a distribution over V tokens K+1 outcomes are kept: the K likeliest, and "any other". The
divergence between two such is never above the one between the distributions they are of (data
processing), and below it by what the others' mass times the divergence within them is.

Shapes: N tokens, V vocabulary, K kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wrinklefree.distill.settings import Direction
from wrinklefree.kernels.vocabulary_loss.reference import kl_divergence, log_probabilities

_LEAST_OTHERS = 1e-7
"""Probability of all others that float32 can tell from none."""


@dataclass(frozen=True)
class TopLogits:
    """The K+1 outcomes of N distributions."""

    ids_NK: Tensor
    """int64"""
    log_NO: Tensor
    """Log probabilities of the K tokens, and last of any other; O = K + 1."""

    @classmethod
    def of(cls, logits_NV: Tensor, kept: int, temperature: float) -> TopLogits:
        """The ``kept`` likeliest tokens at ``temperature``."""
        log_NV = log_probabilities(logits_NV, temperature)
        ids_NK = log_NV.topk(kept, dim=-1).indices
        return cls(ids_NK, _outcomes(log_NV, ids_NK))

    def divergence(
        self,
        student_NV: Tensor,
        *,
        temperature: float,
        temperature_squared: bool,
        direction: Direction = "forward",
    ) -> Tensor:
        """As ``logits_divergence``, between the K+1 outcomes under teacher and student [N]."""
        assert direction != "confidence", "the settings refuse it"
        log_NO = _outcomes(log_probabilities(student_NV, temperature), self.ids_NK)
        pair = (self.log_NO, log_NO) if direction == "forward" else (log_NO, self.log_NO)
        divergence_N = kl_divergence(*pair)
        return divergence_N * temperature**2 if temperature_squared else divergence_N


def _outcomes(log_NV: Tensor, ids_NK: Tensor) -> Tensor:
    log_NK = log_NV.gather(-1, ids_NK)
    others_N1 = (1 - log_NK.exp().sum(-1, keepdim=True)).clamp(min=_LEAST_OTHERS)
    return torch.cat([log_NK, others_N1.log()], dim=-1)
