"""Tables for a terminal. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table under a header: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers in rows:
        cells = [name.ljust(widths[0])]
        cells.extend(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
        lines.append("  ".join(cells))
    return [lines[0], "-" * len(lines[0]), *lines[1:]]
