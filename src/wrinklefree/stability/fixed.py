"""Clipping to a norm that stays the same, or not at all."""

from __future__ import annotations

import math
from typing import Any

import torch

from wrinklefree.stability.clip import ClipStats, Gradients, gradients_of
from wrinklefree.stability.norm import gradient_norm


class FixedClip:
    """Scales gradients of a larger norm down to ``max_norm``; without one it only measures."""

    def __init__(self, *, max_norm: float = math.inf) -> None:
        self.max_norm = max_norm

    @torch.no_grad()
    def clip(self, parameters: Gradients) -> ClipStats:
        """See :class:`~wrinklefree.stability.clip.Clipper`."""
        gradients = gradients_of(parameters)
        norm = gradient_norm(gradients)
        if not math.isfinite(norm) or norm <= self.max_norm:
            return ClipStats(norm, norm, was_clipped=False, finite=math.isfinite(norm))
        for gradient in gradients:
            gradient.mul_(self.max_norm / norm)
        return ClipStats(norm, self.max_norm, was_clipped=True, finite=True)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: each step is decided by itself."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""
