from __future__ import annotations

from pathlib import Path

import pytest

from wrinklefree.train.history import (
    HISTORY,
    HistoryFile,
    read_history,
    read_history_up_to,
    write_history,
)

STEPS: list[dict[str, float]] = [{"step": n, "train/loss": 1 / n} for n in range(1, 8)]


def test_a_file_that_grew_is_the_one_that_is_written_at_once(tmp_path: Path):
    work = tmp_path / "work"
    file = HistoryFile()
    for steps in (2, 2, 3, 7):
        file.extend(work, STEPS[:steps])
    write_history(tmp_path, STEPS)
    assert (work / HISTORY).read_bytes() == (tmp_path / HISTORY).read_bytes()
    assert read_history(work) == STEPS


def test_a_checkpoint_appends_and_writes_nothing_again(tmp_path: Path):
    file = HistoryFile()
    file.extend(tmp_path, STEPS[:3])
    written = bytearray((tmp_path / HISTORY).read_bytes())
    written[2:6] = b"STEP"  # what is there stays there, whatever it is
    (tmp_path / HISTORY).write_bytes(written)
    file.extend(tmp_path, STEPS)
    assert (tmp_path / HISTORY).read_bytes().startswith(written)


def test_each_checkpoint_reads_its_own_part_and_goes_on_from_it(tmp_path: Path):
    file = HistoryFile()
    file.extend(tmp_path, STEPS[:2])
    record = file.record
    file.extend(tmp_path, STEPS[:5])
    history, again = read_history_up_to(tmp_path, record)
    assert history == STEPS[:2]
    assert read_history(tmp_path) == STEPS[:5], "nothing is cut off by reading"
    other: list[dict[str, float]] = [*STEPS[:2], {"step": 3, "train/loss": 9.0}]
    again.extend(tmp_path, other)
    assert read_history(tmp_path) == other
    assert read_history_up_to(tmp_path, again.record)[0] == other


@pytest.mark.parametrize("left", [0, 5, -1])
def test_a_history_that_lost_its_end_is_not_that_of_the_checkpoint(tmp_path: Path, left: int):
    file = HistoryFile()
    file.extend(tmp_path, STEPS)
    path = tmp_path / HISTORY
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="are not those that the checkpoint recorded"):
        read_history_up_to(tmp_path, file.record)


@pytest.mark.parametrize("record", [None, {}, {"bytes": "7"}, {"bytes": 7}, {"bytes": -1}, 3])
def test_a_checkpoint_that_does_not_say_how_far_is_refused(tmp_path: Path, record: object):
    HistoryFile().extend(tmp_path, STEPS)
    with pytest.raises(ValueError, match="checkpoint"):
        read_history_up_to(tmp_path, record)


def test_a_history_that_vanished_is_written_anew(tmp_path: Path):
    file = HistoryFile()
    file.extend(tmp_path, STEPS[:3])
    (tmp_path / HISTORY).unlink()
    file.extend(tmp_path, STEPS[:5])
    assert read_history(tmp_path) == STEPS[:5]
    assert read_history_up_to(tmp_path, file.record)[0] == STEPS[:5]
