"""The ``data_report`` stage: what the data of a run is, before anything is trained on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wrinklefree.evaluate.canvas import save_svg
from wrinklefree.evaluate.data_report import plots
from wrinklefree.evaluate.data_report.pages import samples_page
from wrinklefree.evaluate.data_report.report import DataReport, measure, total
from wrinklefree.evaluate.data_report.tables import report_text
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.evaluate.settings import DataReportSettings

SCHEMA = 1


def report_on_data(
    settings: DataReportSettings,
    raw: Mapping[str, Path],
    clean: Mapping[str, Path],
    tokens: Mapping[str, Path],
    mixture: Path,
    folder: Path,
    *,
    seed: int,
) -> dict[str, Any]:
    """Measure the data and write the report into ``folder``.

    Parameters
    ----------
    raw, clean, tokens : artifacts of the same sources, by their names.
    seed : of the order whose shares are counted, and of the samples of text.

    Returns
    -------
    Facts: documents, bytes and tokens; texts that sources share; held-out documents that are
    training text elsewhere; the largest difference between a share asked for and realised; the
    lowest utilisation of packed rows.

    Files
    -----
    ``report.json``::

        schema   1
        sources  {source: {domain, licence, splits: {split: {documents, bytes, tokens}},
                           bytes_per_token: without ends of text,
                           dropped: {stage: {reason: {unit: count}}}}}
        domains  {domain: {sources, splits, bytes_per_token: as above,
                           lengths: of training documents in tokens {mean, longest,
                           bins: {at least so many: {documents, tokens}}}; each bin ends where
                           twice its length begins,
                           rows, pieces of documents in them, utilisation: {split: …},
                           shares: {asked, ordered, read, epochs, epoch_samples}}}
        repeats  {within: {source: documents}, between: {source: {source: texts}},
                  held_out_in_training: {source: documents}}

    ``table.txt`` (80 columns) and ``table.html``, ``samples.html``, ``plots/*.svg``. All are
    functions of the arguments alone.

    Raises
    ------
    UserError : a manifest can't be read.
    """
    report = measure(settings, raw, clean, tokens, mixture, seed=seed)
    table = report_text(report)
    texts = {
        "report.json": json.dumps(_as_json(report), indent=1, ensure_ascii=False) + "\n",
        "table.txt": table,
        "table.html": text_page("Data", table),
        "samples.html": samples_page(report.domains),
    }
    write_texts(folder, texts)
    drawings = {
        "document_lengths": plots.document_lengths(report.domains, report.sequence_length),
        "shares": plots.shares(report.domains),
        "dropped": plots.dropped(report.sources),
    }
    for name, figure in drawings.items():
        save_svg(figure, folder / "plots" / f"{name}.svg")
    return _facts(report)


def _as_json(report: DataReport) -> dict[str, Any]:
    overlaps = report.overlaps
    between: dict[str, dict[str, int]] = {}
    for first, second, texts in overlaps.between:
        between.setdefault(first, {})[second] = texts
    return {
        "schema": SCHEMA,
        "sources": {name: source.as_json() for name, source in report.sources.items()},
        "domains": {name: domain.as_json() for name, domain in report.domains.items()},
        "repeats": {
            "within": overlaps.repeated,
            "between": between,
            "held_out_in_training": overlaps.held_out_in_training,
        },
    }


def _facts(report: DataReport) -> dict[str, Any]:
    whole = total(amount for source in report.sources.values() for amount in source.splits.values())
    weighted = [domain for domain in report.domains.values() if domain.share.asked > 0]
    return {
        "documents": whole.documents,
        "bytes": whole.bytes,
        "tokens": whole.tokens,
        "texts_in_two_sources": sum(pair.texts for pair in report.overlaps.between),
        "held_out_in_training": sum(report.overlaps.held_out_in_training.values()),
        "largest_share_error": report.largest_share_error(),
        "lowest_utilisation": min(domain.utilisation["train"] for domain in weighted),
    }
