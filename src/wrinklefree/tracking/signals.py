"""Signals that end a stage, held back while it has something to save."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOPPING = (signal.SIGTERM, signal.SIGINT)
"""Preemption, ``scancel``, ``kill``; Ctrl-C."""


@dataclass
class HeldSignals:
    """What came meanwhile."""

    received: signal.Signals | None = None
    """The first one."""


@contextmanager
def held_signals() -> Iterator[HeldSignals]:
    """Hold back SIGTERM and Ctrl-C until the block ends; then what they would have done is done.

    The block looks at ``received`` where it can stop. Further ones change nothing: engines and
    schedulers send several, and none of them may cut off what is being saved. A signal that was
    ignored before (``nohup``) stays so. Only for the main thread.
    """
    held = HeldSignals()

    def hold(number: int, _: object) -> None:
        held.received = held.received or signal.Signals(number)

    before = {one: signal.getsignal(one) for one in STOPPING}
    try:
        for one, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(one, hold)
        yield held
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if held.received:
        signal.raise_signal(held.received)
