from __future__ import annotations

import itertools
import time

import pytest

from wrinklefree.tracking.progress import Progress, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is three seconds after the one before."""
    ticks = itertools.count(100.0, 3.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(ticks))


def test_without_a_terminal_long_work_says_how_far_it_is(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress(iter("abcdefgh"), "read x", "pages", 8)) == list("abcdefgh")
    assert capsys.readouterr().err.splitlines() == [
        "read x: 4 of 8 pages (50%), 00:12 left, 0.3333 a second",
        "read x: 8 of 8 pages (100%), 00:00 left, 0.3333 a second",
        "read x: all 8 pages in 00:27",
    ]


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        (
            "base",
            200,
            "50 of 200 steps, 00:09 left, loss 3.512, held out 3.611, 999 tokens/s",
        ),
        ("stage2", 200000, "50 of 200,000 steps (0%), 3:19:57 left, loss 3.512, held out 3.611"),
        ("experiment.ingredients", 200, "50 of 200 steps, 00:09 left, loss 3.512, held out 3.611"),
        ("experiment.ingredients", 20000, "50 of 20,000 steps (0%), loss 3.512, held out 3.611"),
        ("a" * 50, 200, "50 of 200 steps, 00:09 left"),
        ("a" * 63, 200, "50 of 200 steps"),
    ],
)
def test_a_line_has_80_columns_and_leaves_out_what_matters_least(
    clock: None, capsys: pytest.CaptureFixture[str], name: str, steps: int, expected: str
) -> None:
    shown = Progress(name, "steps", steps)
    shown.advance(50, "loss 3.512", "held out 3.611", "999 tokens/s", line=True)
    assert capsys.readouterr().err == f"{name}: {expected}\n"


def test_a_name_that_is_too_long_is_cut(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abcdefgh"), "a" * 90, "pages", 8))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a" * 65 + "…: 4 of 8 pages"
    assert [len(line) for line in lines] == [80, 80, 80]


def test_an_unknown_total_has_no_time_left(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(progress(range(5), "read x", "pages"))) == 5
    first, last = capsys.readouterr().err.splitlines()
    assert first == "read x: 4 pages, 0.3333 a second"
    assert last == "read x: all 5 pages in 00:18"


def test_short_work_says_nothing(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), "read x", "pages", 3)) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress(range(3), "read x", "pages", 3)) == [0, 1, 2]
    assert "read x: 100%|" in capsys.readouterr().err
