"""Records that are no document: an error, or skipped and counted."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Literal

from wrinklefree.errors import UserError
from wrinklefree.text.sources.decompress import LineStream, bounded_lines

_NAMED = 3
_LINE_FACTOR = 8
"""A line has other keys beside the text, and JSON may write a character as six bytes or more."""


class BadRecordWarning(UserWarning):
    """A record was skipped, as ``on_bad_record: skip`` asks."""


class BadRecords:
    """What to do with a record that is no document."""

    def __init__(
        self, action: Literal["error", "skip"] = "error", max_document_bytes: int = 64 * 2**20
    ) -> None:
        self._action = action
        self.max_document_bytes = max_document_bytes
        self.max_line_bytes = _LINE_FACTOR * max_document_bytes
        """A longer line of JSON is never held in memory whole."""
        self.counts: Counter[str] = Counter()
        """Skipped records by reason."""

    def report(self, reason: str, message: str) -> None:
        """One bad record; ``message`` names file and record and says what is wrong with it.

        Raises UserError unless bad records are skipped. The first few of each reason are shown.
        """
        if self._action == "error":
            raise UserError(f"{message}, or set on_bad_record: skip to leave such records out")
        self.counts[reason] += 1
        if self.counts[reason] <= _NAMED:
            rest = "; others of this kind are only counted" if self.counts[reason] == _NAMED else ""
            warnings.warn(f"skipped: {message}{rest}", BadRecordWarning, stacklevel=2)

    def lines(self, stream: LineStream, where: str) -> Iterator[tuple[int, str, bytes]]:
        """(number from 1, its name in messages, line) of each line that is not blank.

        One of more than ``max_line_bytes`` is reported.
        """
        for number, line in bounded_lines(stream, self.max_line_bytes):
            here = f"{where} line {number}"
            if line is None:
                self.report_too_long(here)
            else:
                yield number, here, line

    def report_too_long(self, where: str) -> None:
        """``report`` for a document of more than ``max_document_bytes``."""
        self.report(
            "too long",
            f"{where}: the text is longer than {self.max_document_bytes >> 20} MiB;"
            " raise max_document_megabytes or cut the document into parts",
        )
