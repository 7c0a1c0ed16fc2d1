"""Advance of long work: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from wrinklefree.tracking.terminal import record, say

T = TypeVar("T")

LINE_SECONDS = 10.0


def progress(
    items: Iterable[T], description: str, unit: str, total: int | None = None
) -> Iterator[T]:
    """Yield ``items``, showing on standard error how many there were.

    It is a line every ten seconds with the rate and, where ``total`` is known, the time left; work
    that is shorter than that says nothing. On a terminal it is a bar, and in a stage the lines are
    in the stage's log file with either.
    """
    tell = say
    if sys.stderr.isatty():
        items = tqdm(items, desc=description, unit=f" {unit}", total=total)
        tell = record
    started = last = time.monotonic()
    said = False
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last, said = now, True
            tell(f"{description}: {_state(done, unit, total, now - started)}")
    if said:
        seconds = tqdm.format_interval(time.monotonic() - started)
        tell(f"{description}: all {done:,} {unit} in {seconds}")


def _state(done: int, unit: str, total: int | None, seconds: float) -> str:
    rate = f"{done / seconds:,.4g} a second"
    if total is None:
        return f"{done:,} {unit}, {rate}"
    left = tqdm.format_interval((total - done) * seconds / done)
    return f"{done:,} of {total:,} {unit} ({done / total:.0%}), {rate}, {left} left"
