"""Progress bars: shown to a person at a terminal, absent from logs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(
    items: Iterable[T], description: str, unit: str, total: int | None = None
) -> Iterator[T]:
    """Yield ``items``, drawing a bar on standard error if that is a terminal."""
    # disable=None is tqdm's own check for a terminal.
    yield from tqdm(items, desc=description, unit=f" {unit}", total=total, disable=None)
