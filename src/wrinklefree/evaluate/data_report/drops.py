"""What fetching and cleaning left out, read from the facts of their manifests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WORDS = ("bad", "dropped", "skipped")

Drops = dict[str, dict[str, int]]
"""By reason: ``documents`` and, where they were counted, other units such as ``bytes``."""


def drops_of(facts: Mapping[str, Any]) -> Drops:
    """Every count of something left out, by reason, in the order of their names.

    Understands ``dropped_<reason>: documents``, ``dropped: {reason: documents}`` and
    ``dropped: {reason: {unit: count}}``; so, too, ``skipped`` and ``bad_records``. What is no whole
    number, such as the place of the first record skipped, is no count.
    """
    found: Drops = {}
    for key, value in sorted(facts.items()):
        word, _, reason = key.partition("_")
        if word not in _WORDS:
            continue
        entries = value if isinstance(value, Mapping) else {reason or word: value}
        for name, counts in sorted(entries.items()):
            units = counts if isinstance(counts, Mapping) else {"documents": counts}
            numbers = {unit: count for unit, count in units.items() if type(count) is int}
            here = found.setdefault(name, {}) if numbers else {}
            for unit, count in numbers.items():
                here[unit] = here.get(unit, 0) + count
    return found
