from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from wrinklefree.evaluate.canvas import save_svg
from wrinklefree.evaluate.data_report import plots
from wrinklefree.evaluate.data_report.report import DataReport
from wrinklefree.evaluate.data_report.tables import STAGES

Draw = Callable[[DataReport], Figure]
DRAWINGS: dict[str, Draw] = {
    "document_lengths": lambda report: plots.document_lengths(report.domains, 16),
    "shares": lambda report: plots.shares(report.domains),
    "dropped": lambda report: plots.dropped(report.sources),
}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_numbers_give_the_same_bytes(name: str, report: DataReport, tmp_path: Path):
    for file in ("a.svg", "b.svg"):
        save_svg(DRAWINGS[name](report), tmp_path / file)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("name", DRAWINGS)
def test_labels_lie_within_the_figure_and_apart_from_each_other(
    name: str, report: DataReport, require_readable_labels: Callable[[Figure], None]
):
    require_readable_labels(DRAWINGS[name](report))


def test_bars_of_lengths_are_shares_of_documents_and_of_tokens(report: DataReport):
    axes = DRAWINGS["document_lengths"](report).axes[0]
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    half = len(heights) // 2
    code = report.domains["code"].lengths
    for drawn, counts in ((heights[:half], code.documents), (heights[half:], code.tokens)):
        assert sum(drawn) == pytest.approx(1.0)
        expected = (counts / counts.sum())[np.flatnonzero(counts)]
        assert [height for height in drawn if height] == pytest.approx(expected)


def test_shares_are_written_with_their_difference(report: DataReport):
    share = report.domains["code"].share
    wrong = replace(report.domains["code"], share=replace(share, asked=0.3, ordered=0.29))
    assert "29.00 % (−1.000)" in texts(plots.shares({"code": wrong}))


def test_what_was_left_out_is_a_part_of_what_was_found(report: DataReport):
    figure = DRAWINGS["dropped"](report)
    # books: 43 documents and 2 + 3 left out; papers: 35 and 1; scripts: 26 and 1 not tokenized.
    assert {"10.42 %", "2.78 %", "3.70 %"} <= set(texts(figure))
    assert "nothing" in texts(figure)
    assert {"fetch: duplicates", "clean: language", "tokenize: max tokens"} <= set(texts(figure))


def test_a_run_that_lost_nothing_is_drawn(report: DataReport, tmp_path: Path):
    none = {stage: {} for stage in STAGES}
    sources = {name: replace(source, drops=none) for name, source in report.sources.items()}
    figure = plots.dropped(sources)
    save_svg(figure, tmp_path / "none.svg")
    assert texts(figure).count("nothing") == 6
