from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from wrinklefree.tracking.terminal import Terminal


def test_the_log_takes_the_name_of_a_file_that_is_no_text(tmp_path: Path) -> None:
    with Terminal("fetch.a") as terminal:
        terminal.open_log(tmp_path)
        terminal.record("error: " + os.fsdecode(b"caf\xe9.txt") + " is no text")
    assert (tmp_path / "fetch.a.log").read_text() == "error: caf\\udce9.txt is no text\n"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("setting", [None, "NO_COLOR"])
def test_colours_are_for_terminals_that_want_them_and_never_in_the_log(
    setting: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if setting:
        monkeypatch.setenv(setting, "1")
    screen, pipe = Screen(), io.StringIO()
    line = "stage 2   3.454 [0.082] \x1b[31m"
    for stream in (screen, pipe):
        with Terminal("evaluate", stream=stream) as terminal:
            terminal.open_log(tmp_path)
            terminal.say(line, "#2080c0")
            assert (tmp_path / "evaluate.log").read_text() == "stage 2   3.454 [0.082] \\x1b[31m\n"
    assert pipe.getvalue() == "stage 2   3.454 [0.082] \\x1b[31m\n"
    shown = screen.getvalue()
    assert shown.startswith("\x1b[38;5;") != (setting == "NO_COLOR")
    assert pipe.getvalue().strip() in shown
