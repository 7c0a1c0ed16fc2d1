"""Noticing that the loss jumped, and which steps to leave out then.

A loss is a spike when it lies more than ``threshold`` robust deviations (1.4826 times the median
absolute deviation) above the median of the ``window`` losses before it. Medians take no notice of
single spikes, which therefore stay in the window; a loss that stays high is the usual one after
half a window. Only what is above counts, so that a loss that falls fast gives no alarm.

Going back to a checkpoint and leaving out the steps around a spike is what large trainings did
(PaLM, arXiv 2204.02311, section 5.1): it is the meeting of these rows with those weights that
spikes, not the rows.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from wrinklefree.stability.robust import center_and_deviation


@dataclass(frozen=True)
class Spike:
    """A step whose loss is far above those before it."""

    step: int
    loss: float
    """nats per token, as it was observed."""
    deviations: float
    """Robust deviations above the median; infinite where the losses before were all alike."""
    leave_out: range
    """Steps to leave out after going back to a checkpoint from before them; empty without
    ``rollback``."""


class SpikeDetector:
    """Watches the loss of every step.

    After a spike with ``leave_out`` go back to a checkpoint from before these steps, of this
    detector too, and take no step for which :meth:`leaves_out` is true. Steps that it leaves out
    stay so when it goes back to an earlier state.

    Parameters
    ----------
    window : losses that are compared with; before there are as many nothing is a spike.
    threshold : robust deviations above their median.
    rollback : whether steps are to be left out.
    skip_steps : how many, of which the one that spiked is the last: the update that did harm was
        made before the loss showed it.
    """

    def __init__(self, *, window: int, threshold: float, rollback: bool, skip_steps: int) -> None:
        self.threshold = threshold
        self.rollback = rollback
        self.skip_steps = skip_steps
        self._losses: deque[float] = deque(maxlen=window)
        self._left_out: set[int] = set()

    def observe(self, step: int, loss: float) -> Spike | None:
        """Take in the loss of a step (0 is the first); one that is not finite counts for nothing.

        Returns
        -------
        What to do about it, if it is a spike.
        """
        if not math.isfinite(loss):
            return None
        deviations = self._deviations(loss)
        self._losses.append(loss)
        if deviations <= self.threshold:
            return None
        first = max(0, step + 1 - self.skip_steps) if self.rollback else step + 1
        spike = Spike(step, loss, deviations, range(first, step + 1))
        self._left_out.update(spike.leave_out)
        return spike

    def leaves_out(self, step: int) -> bool:
        """Whether a spike has shown that this step is to be left out."""
        return step in self._left_out

    def state_dict(self) -> dict[str, Any]:
        """All that later decisions depend on besides the settings; numbers and lists only."""
        return {"losses": list(self._losses), "left_out": sorted(self._left_out)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._losses = deque(state_dict["losses"], self._losses.maxlen)
        self._left_out |= set(state_dict["left_out"])

    def _deviations(self, loss: float) -> float:
        """How many deviations ``loss`` is above the median; 0 before the window is full."""
        if len(self._losses) < (self._losses.maxlen or 0):
            return 0.0
        center, deviation = center_and_deviation(self._losses)
        above = loss - center
        return above / deviation if deviation else math.copysign(math.inf, above) if above else 0.0
