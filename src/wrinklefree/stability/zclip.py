"""ZClip: clipping gradients whose norm is an outlier (arXiv 2504.02507).

With ``mu`` and ``sigma`` the running mean and deviation of norms, a norm g whose z-score
``z = (g - mu) / (sigma + 1e-6)`` is over the threshold ``z_t`` is clipped to
``mu + z_t² sigma / z``: the larger the outlier, the closer to the mean. The statistics take in the
clipped norm.

Two things differ from the paper. A norm that is not finite is reported and otherwise ignored: one
NaN would stay in the mean for ever. And after ``reopen_after`` clips in a row the statistics are
gathered anew, because the mean hardly follows clipped norms: after a lasting change of scale every
step would be clipped to the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wrinklefree.stability.norm import gradient_norm
from wrinklefree.stability.settings import ZClipSettings

_EPSILON = 1e-6


@dataclass(frozen=True)
class ClipStats:
    """What happened to the gradients of one step."""

    raw_norm: float
    """Before clipping."""
    clipped_norm: float
    """After clipping; equal to ``raw_norm`` if nothing was clipped."""
    was_clipped: bool
    z_score: float
    """0 while statistics are gathered, for norms that are not finite, and when disabled."""
    finite: bool
    """Whether the gradients can be used: if not, they were left as they are."""
    ema_mean: float
    """Running mean of norms, this step included; the plain mean while statistics are gathered."""
    ema_std: float


class ZClip:
    """Clips gradients in place by the z-score of their norm.

    Parameters
    ----------
    settings : with ``enabled`` false norms are measured and nothing is clipped.
    """

    def __init__(self, settings: ZClipSettings) -> None:
        self._settings = settings
        self._gathered: list[float] = []
        """Norms of the warmup; empty once it is over."""
        self._warming_up = True
        self._mean = 0.0
        self._variance = 0.0
        self._consecutive = 0
        """Clips since the last step that was not clipped."""

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter]) -> ClipStats:
        """Clip the gradients of ``parameters``; call once per step, before the optimizer's."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        stats = self.observe(gradient_norm(gradients))
        if stats.was_clipped:
            for gradient in gradients:
                gradient.mul_(stats.clipped_norm / stats.raw_norm)
        return stats

    def observe(self, norm: float) -> ClipStats:
        """Take in a norm, without gradients: what :meth:`clip` decides by."""
        if not math.isfinite(norm) or not self._settings.enabled:
            return self._stats(norm, norm, 0.0)
        if self._warming_up:
            self._gather(norm)
            return self._stats(norm, norm, 0.0)
        threshold, deviation = self._settings.z_threshold, math.sqrt(self._variance)
        z_score = (norm - self._mean) / (deviation + _EPSILON)
        if z_score <= threshold:
            self._consecutive = 0
            self._update(norm)
            return self._stats(norm, norm, z_score)
        clipped = self._mean + threshold**2 * deviation / z_score
        self._consecutive += 1
        self._update(clipped)
        stats = self._stats(norm, clipped, z_score)
        if self._consecutive == self._settings.reopen_after:
            self._consecutive = 0
            self._warming_up = True
        return stats

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on besides the settings; numbers and lists only."""
        return {
            "gathered": list(self._gathered),
            "warming_up": self._warming_up,
            "mean": self._mean,
            "variance": self._variance,
            "consecutive": self._consecutive,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._gathered = list(state_dict["gathered"])
        self._warming_up = state_dict["warming_up"]
        self._mean = state_dict["mean"]
        self._variance = state_dict["variance"]
        self._consecutive = state_dict["consecutive"]

    def _gather(self, norm: float) -> None:
        self._gathered.append(norm)
        count = len(self._gathered)
        self._mean = math.fsum(self._gathered) / count
        self._variance = math.fsum((value - self._mean) ** 2 for value in self._gathered) / count
        if count >= self._settings.warmup_steps:
            self._gathered = []
            self._warming_up = False

    def _update(self, norm: float) -> None:
        decay = self._settings.ema_decay
        self._mean = decay * self._mean + (1 - decay) * norm
        self._variance = decay * self._variance + (1 - decay) * (norm - self._mean) ** 2

    def _stats(self, norm: float, clipped: float, z_score: float) -> ClipStats:
        return ClipStats(
            raw_norm=norm,
            clipped_norm=clipped,
            was_clipped=clipped < norm,
            z_score=z_score,
            finite=math.isfinite(norm),
            ema_mean=self._mean,
            ema_std=math.sqrt(self._variance),
        )
