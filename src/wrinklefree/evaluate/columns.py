"""Tables of text, column by column: as Markdown or plain, cut where they get too wide."""

from __future__ import annotations

from collections.abc import Callable, Sequence

TERMINAL_WIDTH = 80
ABSENT = "–"
_LONGEST_HEADER = 24

Column = list[str]
"""A header and a cell per row."""
Layout = Callable[[Sequence[Column]], list[str]]


def header(name: str) -> str:
    """A name, shortened where no table could hold it."""
    return name if len(name) <= _LONGEST_HEADER else name[: _LONGEST_HEADER - 1] + "…"


def fits(columns: Sequence[Column], layout: Layout, width: int) -> bool:
    """Whether the table of these columns is at most ``width`` characters wide."""
    return max(map(len, layout(columns))) <= width


def fitted(names: Column, columns: Sequence[Column], layout: Layout, width: int) -> list[str]:
    """Tables that hold all columns, each with the names first and as many more as it has room for.

    A table of the names and a single column is as wide as it must be.
    """
    tables, left = [], list(columns)
    while left:
        count = len(left)
        while count > 1 and not fits([names, *left[:count]], layout, width):
            count -= 1
        tables.append("\n".join(layout([names, *left[:count]])))
        left = left[count:]
    return tables


def markdown(columns: Sequence[Column]) -> list[str]:
    """Lines of a Markdown table."""
    widths = [max(map(len, column)) for column in columns]
    rows = [_aligned(row, widths, " | ") for row in zip(*columns, strict=True)]
    first, *others = ["-" * width for width in widths]
    rule = " | ".join([first, *(dashes[:-1] + ":" for dashes in others)])
    return [f"| {row} |" for row in (rows[0], rule, *rows[1:])]


def plain(columns: Sequence[Column]) -> list[str]:
    """Lines of a table for a terminal."""
    widths = [max(map(len, column)) for column in columns]
    rows = [_aligned(row, widths, "  ") for row in zip(*columns, strict=True)]
    return [rows[0], "-" * len(rows[0]), *rows[1:]]


def plain_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """``plain`` for a table given row by row, the header first."""
    return plain([list(column) for column in zip(*rows, strict=True)])


def _aligned(row: Sequence[str], widths: Sequence[int], separator: str) -> str:
    """Names to the left, numbers to the right."""
    name, *numbers = row
    cells = [name.ljust(widths[0])]
    cells.extend(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True))
    return separator.join(cells)
