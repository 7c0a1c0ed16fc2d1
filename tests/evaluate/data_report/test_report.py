from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wrinklefree.errors import UserError
from wrinklefree.evaluate.data_report.report import Amount, DataReport, bytes_per_token, measure
from wrinklefree.mixture.rows import read_mixture


def test_amounts_are_of_the_documents_that_became_tokens(report: DataReport):
    scripts = report.sources["scripts"]
    size = sum(len(f"def f{n}(): return {n}\n" * 9) for n in range(25))
    assert scripts.splits["train"] == Amount(25, size, size + 25)
    assert scripts.splits["held_out"] == Amount(1, 20, 21)
    # One token per letter here.
    assert scripts.as_json()["bytes_per_token"] == 1.0
    assert bytes_per_token({"train": Amount(2, 0, 2)}) is None


def test_what_every_stage_left_out_is_named(report: DataReport):
    assert report.sources["books"].drops == {
        "fetch": {"duplicates": {"documents": 2}, "empty": {"documents": 0}},
        "clean": {"language": {"documents": 3, "paragraphs": 0, "bytes": 100}},
        "tokenize": {"max_tokens": {"documents": 0, "bytes": 0}},
    }
    assert report.sources["scripts"].drops["tokenize"] == {
        "max_tokens": {"documents": 1, "bytes": len("not tokenized")}
    }
    assert report.sources["books"].licence == "CC0"


def test_repeated_and_leaked_texts_are_found(report: DataReport):
    overlaps = report.overlaps
    assert overlaps.repeated == {"books": 0, "papers": 1, "scripts": 0}
    assert [tuple(pair) for pair in overlaps.between] == [("books", "papers", 1)]
    assert overlaps.held_out_in_training == {"books": 1, "papers": 0, "scripts": 0}


def test_a_domain_is_all_of_its_sources_and_fits_the_packed_rows(report: DataReport, packed: Path):
    mixture = read_mixture(packed)
    assert list(report.domains) == [domain.name for domain in mixture.domains] == ["code", "prose"]
    prose, (_, packed_prose) = report.domains["prose"], mixture.domains
    assert prose.sources == ["books", "papers"]
    parts = [report.sources[name].splits["train"] for name in prose.sources]
    assert prose.splits["train"].tokens == sum(part.tokens for part in parts)
    assert prose.splits["train"].tokens == packed_prose.train_tokens == prose.lengths.tokens.sum()
    assert prose.splits["train"].documents == prose.lengths.documents.sum() == 75
    assert prose.rows["train"] == len(packed_prose.train)
    assert prose.utilisation["train"] == packed_prose.train_tokens / (16 * prose.rows["train"])
    assert prose.pieces["train"] == len(packed_prose.train.pieces)


def test_every_setting_and_the_seed_reach_what_they_are_for(
    measured: Callable[..., DataReport], report: DataReport
):
    def share(of: DataReport) -> tuple[float, float]:
        return of.domains["code"].share.ordered, of.domains["code"].share.read

    assert [len(d.samples) for d in measured(samples_per_domain=3).domains.values()] == [3, 3]
    longer = share(measured(share_samples=1001))
    assert longer[0] != share(report)[0] and longer[1] == share(report)[1]
    shorter_report = measured(read_samples=100)
    shorter = share(shorter_report)
    assert shorter[0] == share(report)[0] and shorter[1] != share(report)[1]
    reseeded = measured(seed=6)
    assert reseeded.domains["prose"].samples != report.domains["prose"].samples
    # Whole blocks of the order have the same domains under every seed, so part of one is read.
    assert share(measured(seed=6, read_samples=100))[1] != share(shorter_report)[1]


def test_a_source_without_a_manifest_is_named(
    sources: tuple[dict[str, Path], dict[str, Path], dict[str, Path]],
    packed: Path,
    report: DataReport,
    tmp_path: Path,
):
    raw, clean, tokens = sources
    with pytest.raises(UserError, match="gone: not a finished artifact"):
        measure(report.settings, raw | {"books": tmp_path / "gone"}, clean, tokens, packed, seed=1)
