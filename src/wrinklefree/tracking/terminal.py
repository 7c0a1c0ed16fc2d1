"""What a stage says: lines on standard error and in a log file."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """``text`` with control characters but tab and newline spelled out, as ``\\x1b``.

    File names, prompts and what a model says may hold codes that a terminal would obey.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _styled(line: str, style: str, stream: TextIO) -> str:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream)
    with console.capture() as captured:
        console.print(Text(line, style), end="", soft_wrap=True)
    return captured.get()


class Terminal:
    """Output of one stage, on stderr and in ``logs/<label>.log``."""

    def __init__(self, label: str, *, stream: TextIO | None = None) -> None:
        self.label = label
        self._stream = stream or sys.stderr
        self._log: TextIO | None = None

    def __enter__(self) -> Terminal:
        global _of_the_stage
        _of_the_stage = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _of_the_stage
        _of_the_stage = None
        if self._log:
            self._log.close()
            self._log = None

    def open_log(self, folder: Path = Path("logs")) -> None:
        """Start the log file anew. Called when it is certain that no other process writes it."""
        folder.mkdir(exist_ok=True)
        self._log = (folder / f"{self.label}.log").open(
            "w",
            encoding="utf-8",
            errors="backslashreplace",  # a file's name may be no text
        )

    def say(self, line: str, style: str = "") -> None:
        """Print a line, above a progress bar if there is one.

        Parameters
        ----------
        style : of rich, such as ``bold``: on terminals with colours, unless NO_COLOR is set.
        """
        line = printable(line)
        tqdm.write(_styled(line, style, self._stream) if style else line, file=self._stream)
        self._stream.flush()
        self.record(line)

    def show_warning(
        self, message: Warning | str, category: type[Warning], *_: Any, **__: Any
    ) -> None:
        """Replacement of ``warnings.showwarning``: one line, without a source excerpt."""
        self.say(f"warning: {self.label}: {message}")

    def record(self, line: str) -> None:
        """Write to the log file only. Where that fails, the log ends and the stage goes on."""
        if self._log is None:
            return
        try:
            self._log.write(printable(line) + "\n")
            self._log.flush()
        except OSError as error:
            log, self._log = self._log, None
            with contextlib.suppress(OSError):  # closing tries to write once more
                log.close()
            self.say(f"warning: {self.label}: {log.name} ends here: {error.strerror}")


_of_the_stage: Terminal | None = None
"""That of the stage which this process runs, inside its ``with`` block."""


def say(line: str) -> None:
    """Print a line on stderr; in a stage also write it to the stage's log file."""
    if _of_the_stage:
        _of_the_stage.say(line)
    else:
        print(printable(line), file=sys.stderr, flush=True)


def record(line: str) -> None:
    """In a stage, write a line to its log file only."""
    if _of_the_stage:
        _of_the_stage.record(line)
