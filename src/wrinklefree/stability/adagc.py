"""AdaGC: clipping each tensor's gradient by its own past (arXiv 2502.11034, algorithm 1).

Tensor i, whose clipped gradients had the norm ``γ_i`` lately, keeps
``h_i = min(1, 1.05 γ_i / ‖g_i‖)`` of its gradient, and ``γ_i`` becomes
``0.98 γ_i + 0.02 h_i ‖g_i‖``. In the first 100 steps all gradients are clipped together to a norm
of 1, and ``γ_i`` is the smallest norm that this left of tensor i.

Two things differ from the paper. Gradients that are not finite are reported and otherwise ignored.
And a norm of 0 says nothing of a tensor (an embedding that no token of a step reads), where the
paper would give it a ``γ_i`` of 0 and clip it to nothing for ever.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from wrinklefree.stability.clip import ClipStats, Gradients, parameters_of
from wrinklefree.stability.norm import gradient_norms


class AdaGC:
    """Clips gradients in place, tensor by tensor.

    Parameters
    ----------
    ratio : how far a norm may be above the tensor's running mean.
    ema_decay : weight of the past in that mean.
    warmup_steps : steps that are clipped as a whole, to ``warmup_max_norm``.
    """

    def __init__(
        self,
        *,
        ratio: float = 1.05,
        ema_decay: float = 0.98,
        warmup_steps: int = 100,
        warmup_max_norm: float = 1.0,
    ) -> None:
        self.ratio = ratio
        self.ema_decay = ema_decay
        self.warmup_steps = warmup_steps
        self.warmup_max_norm = warmup_max_norm
        self._steps = 0
        self._means: list[float] = []
        """γ of every parameter, in the order in which they are given; 0 while it is not known."""

    @torch.no_grad()
    def clip(self, parameters: Gradients) -> ClipStats:
        """See :class:`~wrinklefree.stability.clip.Clipper`; the parameters are always the same."""
        every = parameters_of(parameters)
        indices = [index for index, parameter in enumerate(every) if parameter.grad is not None]
        gradients = [parameter.grad for parameter in every if parameter.grad is not None]
        if not gradients:
            return ClipStats(0.0, 0.0, was_clipped=False, finite=True)
        norms = gradient_norms(gradients)
        *own, total = torch.cat([norms, torch.linalg.vector_norm(norms)[None]]).tolist()
        if not math.isfinite(total):
            return ClipStats(total, total, was_clipped=False, finite=False)
        self._means = self._means or [0.0] * len(every)
        warming_up = self._steps < self.warmup_steps
        self._steps += 1
        kept = [
            self._take(index, norm, total, warming_up)
            for index, norm in zip(indices, own, strict=True)
        ]
        for gradient, share in zip(gradients, kept, strict=True):
            if share < 1.0:
                gradient.mul_(share)
        clipped = sum(share < 1.0 for share in kept)
        left = math.hypot(*(share * norm for share, norm in zip(kept, own, strict=True)))
        return ClipStats(
            raw_norm=total,
            clipped_norm=min(left, total) if clipped else total,
            was_clipped=clipped > 0,
            finite=True,
            metrics={"train/adagc_clipped_share": clipped / len(kept)},
        )

    def _take(self, index: int, norm: float, total: float, warming_up: bool) -> float:
        """The share of a tensor's gradient that is kept; its mean takes in what that leaves."""
        mean = self._means[index]
        bound = self.warmup_max_norm if warming_up else self.ratio * (mean or math.inf)
        share = min(1.0, bound / (total if warming_up else norm)) if norm else 1.0
        if left := share * norm:
            later = self.ema_decay * mean + (1 - self.ema_decay) * left
            self._means[index] = left if not mean else min(mean, left) if warming_up else later
        return share

    def state_dict(self) -> dict[str, Any]:
        """See :class:`~wrinklefree.stability.clip.Clipper`."""
        return {"steps": self._steps, "means": list(self._means)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._steps = state_dict["steps"]
        self._means = list(state_dict["means"])
