"""ZClip: clipping gradients whose norm is an outlier (arXiv 2504.02507).

With ``mu`` and ``sigma`` the running mean and deviation of norms, a norm g whose z-score
``z = (g - mu) / (sigma + 1e-6)`` is over the threshold ``z_t`` is clipped to
``mu + z_t² sigma / z``: the larger the outlier, the closer to the mean. The statistics take in the
clipped norm.

Three things differ from the paper. A norm that is not finite is reported and otherwise ignored: one
NaN would stay in the mean for ever. After ``reopen_after`` clips in a row the statistics are
gathered anew, because the mean hardly follows clipped norms: after a lasting change of scale every
step would be clipped to the end. And a spike while statistics are gathered is clipped by the same
formula, with the median and the median absolute deviation of the norms before it for ``mu`` and
``sigma``: taken in whole, one of 100 times the norm hides one of 50 times that comes later. A
spike is an outlier by that z-score that is also over 8 times the median, for the deviation of a few
norms is uncertain; norms that fall from a high start are never spikes.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from wrinklefree.stability.clip import ClipStats, Gradients, gradients_of
from wrinklefree.stability.norm import gradient_norm
from wrinklefree.stability.robust import center_and_deviation

_EPSILON = 1e-6
_SPIKE = 8.0
"""Times the median, from which a norm may be a spike while statistics are gathered."""
_ENOUGH = 4
"""Norms that a median is trusted from."""


class ZClip:
    """Clips gradients in place by the z-score of their norm: ``stats = ZClip().clip(model)``.

    Parameters
    ----------
    z_threshold : standard deviations above the mean from which a norm is clipped.
    ema_decay : weight of the past in the running mean and variance of the norm.
    warmup_steps : steps that gather statistics, in which only spikes are clipped.
    reopen_after : consecutive clips after which the statistics are gathered anew.
    """

    def __init__(
        self,
        *,
        z_threshold: float = 3.0,
        ema_decay: float = 0.99,
        warmup_steps: int = 25,
        reopen_after: int = 20,
    ) -> None:
        self.z_threshold = z_threshold
        self.ema_decay = ema_decay
        self.warmup_steps = warmup_steps
        self.reopen_after = reopen_after
        self._gathered: list[float] = []
        """Norms of the warmup, after clipping; empty once it is over."""
        self._warming_up = True
        self._mean = 0.0
        self._variance = 0.0
        self._consecutive = 0
        """Clips since the last step that was not clipped."""

    @torch.no_grad()
    def clip(self, parameters: Gradients) -> ClipStats:
        """See :class:`~wrinklefree.stability.clip.Clipper`."""
        gradients = gradients_of(parameters)
        stats = self.observe(gradient_norm(gradients))
        if stats.was_clipped:
            for gradient in gradients:
                gradient.mul_(stats.clipped_norm / stats.raw_norm)
        return stats

    def observe(self, norm: float) -> ClipStats:
        """Take in a norm, without gradients: what :meth:`clip` decides by."""
        if not math.isfinite(norm):
            return self._stats(norm, norm, 0.0)
        center, deviation = self._spread()
        z_score = (norm - center) / (deviation + _EPSILON)
        if self._warming_up and not 0.0 < _SPIKE * center < norm:
            z_score = 0.0
        clipped = norm
        if outlier := z_score > self.z_threshold:
            clipped = center + self.z_threshold**2 * deviation / z_score
        self._consecutive = self._consecutive + 1 if outlier else 0
        (self._gather if self._warming_up else self._update)(clipped)
        stats = self._stats(norm, clipped, z_score)
        if self._consecutive == self.reopen_after:
            self._consecutive = 0
            self._gathered = []
            self._warming_up = True
        return stats

    def state_dict(self) -> dict[str, Any]:
        """See :class:`~wrinklefree.stability.clip.Clipper`."""
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

    def _spread(self) -> tuple[float, float]:
        """The norm to expect, and its deviation; zeros while too little is known."""
        if not self._warming_up:
            return self._mean, math.sqrt(self._variance)
        enough = len(self._gathered) >= _ENOUGH
        return center_and_deviation(self._gathered) if enough else (0.0, 0.0)

    def _gather(self, norm: float) -> None:
        self._gathered.append(norm)
        count = len(self._gathered)
        self._mean = math.fsum(self._gathered) / count
        self._variance = math.fsum((value - self._mean) ** 2 for value in self._gathered) / count
        if count >= self.warmup_steps:
            self._gathered = []
            self._warming_up = False

    def _update(self, norm: float) -> None:
        decay = self.ema_decay
        self._mean = decay * self._mean + (1 - decay) * norm
        self._variance = decay * self._variance + (1 - decay) * (norm - self._mean) ** 2

    def _stats(self, norm: float, clipped: float, z_score: float) -> ClipStats:
        return ClipStats(
            raw_norm=norm,
            clipped_norm=clipped,
            was_clipped=clipped < norm,
            finite=math.isfinite(norm),
            z_score=z_score,
            metrics={
                "train/zclip_ema_mean": self._mean,
                "train/zclip_ema_std": math.sqrt(self._variance),
            },
        )
