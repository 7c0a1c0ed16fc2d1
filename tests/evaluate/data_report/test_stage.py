from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.evaluate.data_report.report import DataReport
from wrinklefree.evaluate.data_report.stage import report_on_data

FILES = {
    "report.json",
    "table.txt",
    "table.html",
    "samples.html",
    "plots/document_lengths.svg",
    "plots/shares.svg",
    "plots/dropped.svg",
}
Sources = tuple[dict[str, Path], dict[str, Path], dict[str, Path]]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def written(
    sources: Sources, packed: Path, report: DataReport, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report")
    return folder, report_on_data(report.settings, *sources, packed, folder, seed=5)


def test_the_same_arguments_give_the_same_files(
    written: tuple[Path, dict[str, Any]],
    sources: Sources,
    packed: Path,
    report: DataReport,
    tmp_path: Path,
):
    backwards = [dict(reversed(folders.items())) for folders in sources]
    raw, clean, tokens = backwards
    facts = report_on_data(report.settings, raw, clean, tokens, packed, tmp_path, seed=5)
    assert contents(tmp_path) == contents(written[0])
    assert set(contents(tmp_path)) == FILES
    assert facts == written[1]


def test_the_file_has_the_numbers_of_the_report(
    written: tuple[Path, dict[str, Any]], report: DataReport
):
    found = json.loads((written[0] / "report.json").read_text(encoding="utf-8"))
    assert found["schema"] == 1
    assert found["sources"]["books"] == report.sources["books"].as_json()
    assert found["domains"]["prose"] == report.domains["prose"].as_json()
    assert found["repeats"] == {
        "within": {"books": 0, "papers": 1, "scripts": 0},
        "between": {"books": {"papers": 1}},
        "held_out_in_training": {"books": 1, "papers": 0, "scripts": 0},
    }


def test_the_facts_sum_up_the_report(written: tuple[Path, dict[str, Any]], report: DataReport):
    facts = written[1]
    assert facts["documents"] == 43 + 35 + 26
    assert facts["tokens"] == facts["bytes"] + facts["documents"]
    assert (facts["texts_in_two_sources"], facts["held_out_in_training"]) == (1, 1)
    shares = [domain.share for domain in report.domains.values()]
    assert facts["largest_share_error"] == max(abs(s.ordered - s.asked) for s in shares)
    lowest = min(domain.utilisation["train"] for domain in report.domains.values())
    assert facts["lowest_utilisation"] == lowest
