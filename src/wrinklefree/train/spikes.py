"""What is done about a loss that jumps: it is told, or training goes back and leaves steps out."""

from __future__ import annotations

from typing import Any

from wrinklefree.stability.settings import SpikeSettings
from wrinklefree.stability.spikes import Spike, SpikeDetector
from wrinklefree.train.hooks import Hook, Training


class Spikes(Hook):
    """Watches the loss. A spike is a metric, a line, and a fact of the result.

    Steps that were left out are recorded in the history, and stay so in a run that resumes.
    """

    name = "spikes"

    def __init__(self, settings: SpikeSettings) -> None:
        self._detector = SpikeDetector(
            window=settings.window,
            threshold=settings.threshold,
            rollback=settings.rollback,
            skip_steps=settings.skip_steps,
        )
        self._events: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """The detector's state, and the spikes so far."""
        return {"detector": self._detector.state_dict(), "events": list(self._events)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave, but for spikes that made training go back to it."""
        self._detector.load_state_dict(state_dict["detector"])
        self._events = max(self._events, list(state_dict["events"]), key=len)

    def leaves_out(self, step: int) -> bool:
        """Whether a spike has shown that a step is to be left out."""
        return self._detector.leaves_out(step)

    def after_step(self, training: Training, entry: dict[str, float]) -> None:
        """Look at the loss."""
        step = training.state.step - 1
        if "train/loss" not in entry:
            return
        spike = self._detector.observe(step, entry["train/loss"])
        if spike is None:
            return
        entry["train/spike"] = min(spike.deviations, 1e9)
        event = {"step": step + 1, "loss": spike.loss, "deviations": entry["train/spike"]}
        said = f"warning: step {step + 1}: the loss {spike.loss:.3f} is a spike"
        if spike.leave_out:
            back = training.go_back(spike.leave_out.start)
            # From its checkpoint up to here steps are taken as before.
            event["went_back_to"] = -1 if back is None else max(back, spike.leave_out.start)
            said += f"; {_what_follows(back, spike)}"
        self._events.append(event)
        training.journal.say(said)

    def facts(self) -> dict[str, Any]:
        """Every spike: step, loss, robust deviations, and the step that training went back to."""
        return {"spikes": self._events}


def _what_follows(back: int | None, spike: Spike) -> str:
    if back is None:
        return "there is no checkpoint to go back to"
    first = max(back, spike.leave_out.start) + 1
    return f"training goes back to step {back} and leaves out steps {first} to {spike.step + 1}"
