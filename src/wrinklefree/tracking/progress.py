"""Advance of long work: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from tqdm import tqdm

from wrinklefree.tracking.terminal import record, say

T = TypeVar("T")

LINE_SECONDS = 10.0
_WIDTH = 80
"""Columns of a terminal, which no line goes beyond."""


class Progress:
    """Shows on standard error how much is done.

    It is a line every ten seconds; on a terminal it is a bar, and the lines are in the stage's log
    file only.

    Parameters
    ----------
    total : in units; None where nobody knows, and then no time left is told.
    done : units that were done before.
    shown : False: it counts in silence.
    """

    def __init__(
        self,
        description: str,
        unit: str,
        total: int | None = None,
        done: int = 0,
        *,
        shown: bool = True,
    ) -> None:
        self._description, self._unit, self._total = description, unit, total
        self._first = self._done = done
        self._started = self._last = time.monotonic()
        on_terminal = sys.stderr.isatty()
        self._tell = record if on_terminal else say
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=f" {unit}",
            desc=description,
            disable=not (on_terminal and shown),
            dynamic_ncols=True,
        )
        self._shown, self._has_told = shown, False

    def advance(self, amount: int = 1, *notes: str, line: bool = False) -> None:
        """Count ``amount`` units as done.

        Parameters
        ----------
        notes : shown behind the bar and in the line, in place of the rate: loss and speed. The last
            is left out first where a line is full.
        line : tell a line now.
        """
        self._done += amount
        if not self._bar.disable:
            self._bar.set_postfix_str(", ".join(notes), refresh=False)
            self._bar.update(amount)
        now = time.monotonic()
        if self._shown and (line or now - self._last >= LINE_SECONDS):
            self._last, self._has_told = now, True
            self._tell_what(self._state(now - self._started, notes))

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def finish(self) -> None:
        """Tell how long all of it took, unless it was too short for a line."""
        if self._has_told:
            seconds = tqdm.format_interval(time.monotonic() - self._started)
            self._tell_what(f"all {self._done:,} {self._unit} in {seconds}")

    def _tell_what(self, state: str) -> None:
        room = _WIDTH - len(f": {state}")
        name = self._description
        self._tell(f"{name if len(name) <= room else f'{name[: room - 1]}…'}: {state}")

    def _state(self, seconds: float, notes: tuple[str, ...]) -> str:
        """The most of what there is to say that fits behind the description."""
        rate = (self._done - self._first) / seconds if seconds else 0.0
        notes = notes or (f"{rate:,.4g} a second",)
        done, share = f"{self._done:,} {self._unit}", ""
        left: tuple[str, ...] = ()
        if self._total is not None:
            done = f"{self._done:,} of {self._total:,} {self._unit}"
            share = f" ({self._done / self._total:.0%})" if self._total else " (100%)"
            time_left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
            left = (f"{time_left} left",)
        fewer = notes[:-1]
        states = (
            ", ".join([done + shown, *behind])
            for behind in ((*left, *notes), (*left, *fewer), fewer, left, ())
            for shown in (share, "")
        )
        room = _WIDTH - len(f"{self._description}: ")
        return next((state for state in states if len(state) <= room), done)


def progress(
    items: Iterable[T], description: str, unit: str, total: int | None = None
) -> Iterator[T]:
    """Yield ``items`` and show how many there were; of short work nothing is said."""
    with closing(Progress(description, unit, total)) as shown:
        for item in items:
            yield item
            shown.advance()
    shown.finish()
