from __future__ import annotations

import os
from pathlib import Path

from wrinklefree.tracking.terminal import Terminal


def test_the_log_takes_the_name_of_a_file_that_is_no_text(tmp_path: Path) -> None:
    with Terminal("fetch.a") as terminal:
        terminal.open_log(tmp_path)
        terminal.record("error: " + os.fsdecode(b"caf\xe9.txt") + " is no text")
    assert (tmp_path / "fetch.a.log").read_text() == "error: caf\\udce9.txt is no text\n"
