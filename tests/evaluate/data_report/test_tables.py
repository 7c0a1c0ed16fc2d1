from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.evaluate.data_report.overlap import Overlaps
from wrinklefree.evaluate.data_report.report import Amount, DataReport, SourceReport
from wrinklefree.evaluate.data_report.tables import (
    NO_OVERLAP,
    NOTHING_DROPPED,
    STAGES,
    dropped_table,
    overlap_table,
    report_text,
    short,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (812, "812"), (999.4, "999"), (999.6, "1.0 k"), (1049, "1.0 k"),
        (99_949, "99.9 k"), (99_951, "100 k"), (999_501, "1.0 M"), (16_612_271, "16.6 M"),
        (2.5e12, "2.5 T"), (2.5e16, "25000 T"),
    ],
)  # fmt: skip
def test_numbers_are_three_digits_and_a_unit(number: float, text: str):
    assert short(number) == text


def test_the_report_of_a_small_run_reads_as_expected(report: DataReport):
    lines = report_text(report).splitlines()
    assert "source   domain  documents  bytes  tokens  bytes/token  held out" in lines
    # 43 documents of 4,302 letters, a token each, and an end; 49 tokens are held out.
    assert "books     prose         43  4.3 k   4.3 k         1.00    1.13 %" in lines
    words = [line.split() for line in lines]
    assert ["clean:", "language,", "bytes", "100", "0", "0"] in words
    assert ["tokenize:", "max_tokens", "0", "0", "1"] in words
    assert "papers: 1 training documents repeat an earlier one" in lines
    assert "books and papers: 1 training texts are in both" in lines
    assert "books: 1 HELD-OUT documents are training text of some source" in lines
    assert any(line[:3] == ["code", "30.00", "%"] for line in words)


def test_a_run_without_losses_or_repetitions_says_so(report: DataReport):
    clean = replace(report.sources["papers"], drops={stage: {} for stage in STAGES})
    assert dropped_table({"papers": clean}) == NOTHING_DROPPED
    assert overlap_table(replace(report, overlaps=Overlaps({"a": 0}, [], {"a": 0}))) == NO_OVERLAP


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.from_regex(r"[a-z][a-z0-9_]{0,40}", fullmatch=True), min_size=1, max_size=9, unique=True
    )
)
def test_tables_fit_a_terminal_and_leave_no_source_out(names: list[str]):
    source = SourceReport(
        "prose",
        "",
        {"train": Amount(10**9, 10**12, 10**11), "held_out": Amount(10, 10**6, 10**5)},
        {"fetch": {"empty": {"documents": 10**6}}, "clean": {}, "tokenize": {}},
    )
    table = dropped_table(dict.fromkeys(names, source))
    assert max(map(len, table.splitlines())) <= 80
    assert table.count("1.0 M") == len(names)
