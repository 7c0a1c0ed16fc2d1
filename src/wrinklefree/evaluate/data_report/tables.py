"""The report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from wrinklefree.evaluate.columns import (
    ABSENT,
    TERMINAL_WIDTH,
    Column,
    fitted,
    header,
    plain,
)
from wrinklefree.evaluate.data_report.report import (
    DataReport,
    DomainReport,
    SourceReport,
    bytes_per_token,
    total,
)

T = TypeVar("T")

STAGES = ("fetch", "clean", "tokenize")
_UNITS = ("", " k", " M", " G", " T")
NOTHING_DROPPED = "Nothing was dropped."
NO_OVERLAP = "No training text is there twice, and no held-out text is trained on."


def report_text(report: DataReport) -> str:
    """All tables, each under a line that says what it is, at most 80 columns wide."""
    settings = report.settings
    parts = [
        ("Text that became tokens, both splits", _amounts(report.sources)),
        ("Left out, in documents (or other units as said)", dropped_table(report.sources)),
        ("Texts that are there more than once", overlap_table(report)),
        (
            f"Packed rows of {report.sequence_length} tokens; lengths of training documents in"
            " tokens, and how\noften a row ends within one",
            _rows(report.domains),
        ),
        (
            f"Shares of training tokens in {settings.share_samples:,} rows by the order, and in the"
            f"\nfirst {settings.read_samples:,} as read; epochs are those of the long run",
            _shares(report.domains),
        ),
    ]
    return "\n".join(f"{title}\n\n{table}\n" for title, table in parts)


def short(number: float) -> str:
    """Three digits and a unit: 812, 16.6 M."""
    value, unit = float(number), 0
    while abs(value) >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if not unit or abs(value) >= 99.95 else 1
    return f"{value:.{digits}f}{_UNITS[unit]}"


def percent(share: float) -> str:
    """A share to a hundredth of a percent."""
    return f"{100 * share:.2f} %"


def _amounts(sources: dict[str, SourceReport]) -> str:
    def held_out(source: SourceReport) -> str:
        whole = total(source.splits.values()).tokens
        return percent(source.splits["held_out"].tokens / whole) if whole else ABSENT

    def ratio(source: SourceReport) -> str:
        found = bytes_per_token(source.splits)
        return ABSENT if found is None else f"{found:.2f}"

    return _table(
        "source",
        sources,
        {
            "domain": lambda source: header(source.domain),
            "documents": lambda source: short(total(source.splits.values()).documents),
            "bytes": lambda source: short(total(source.splits.values()).bytes),
            "tokens": lambda source: short(total(source.splits.values()).tokens),
            "bytes/token": ratio,
            "held out": held_out,
        },
    )


def dropped_table(sources: dict[str, SourceReport]) -> str:
    """A row per reason for which something was left out, a column per source."""
    reasons = dropped_reasons(sources)
    if not reasons:
        return NOTHING_DROPPED
    names = ["reason", *(f"{stage}: {reason}{_of(unit)}" for stage, reason, unit in reasons)]
    columns = [
        [header(name), *(short(s.drops[a].get(b, {}).get(unit, 0)) for a, b, unit in reasons)]
        for name, s in sources.items()
    ]
    return "\n\n".join(fitted(names, columns, plain, TERMINAL_WIDTH))


def dropped_reasons(sources: dict[str, SourceReport]) -> list[tuple[str, str, str]]:
    """(stage, reason, unit) of everything of which some source lost any, stage after stage."""
    found = dict.fromkeys(
        (stage, reason, unit)
        for stage in STAGES
        for source in sources.values()
        for reason, units in source.drops[stage].items()
        for unit, count in units.items()
        if count
    )
    return sorted(
        found, key=lambda key: (STAGES.index(key[0]), key[1], key[2] != "documents", key[2])
    )


def overlap_table(report: DataReport) -> str:
    """A line per source or pair of sources with a text that is there twice."""
    overlaps = report.overlaps
    lines = [
        f"{name}: {count:,} training documents repeat an earlier one"
        for name, count in overlaps.repeated.items()
        if count
    ]
    lines += [
        f"{a} and {b}: {count:,} training texts are in both" for a, b, count in overlaps.between
    ]
    lines += [
        f"{name}: {count:,} HELD-OUT documents are training text of some source"
        for name, count in overlaps.held_out_in_training.items()
        if count
    ]
    return "\n".join(lines) or NO_OVERLAP


def _rows(domains: dict[str, DomainReport]) -> str:
    return _table(
        "domain",
        domains,
        {
            "rows": lambda domain: short(domain.rows["train"]),
            "filled": lambda domain: percent(domain.utilisation["train"]),
            "held out": lambda domain: short(domain.rows["held_out"]),
            "mean document": _mean,
            "longest": lambda domain: short(domain.lengths.longest),
            "cuts": lambda domain: short(domain.pieces["train"] - domain.splits["train"].documents),
        },
    )


def _mean(domain: DomainReport) -> str:
    mean = domain.lengths.as_json()["mean"]
    return ABSENT if mean is None else short(mean)


def _shares(domains: dict[str, DomainReport]) -> str:
    return _table(
        "domain",
        domains,
        {
            "asked": lambda domain: percent(domain.share.asked),
            "ordered": lambda domain: percent(domain.share.ordered),
            "read": lambda domain: percent(domain.share.read),
            "epochs": lambda domain: f"{domain.share.epochs:.2f}",
            "rows per epoch": lambda domain: (
                ABSENT if domain.share.epoch_samples is None else short(domain.share.epoch_samples)
            ),
        },
    )


def _table(first: str, rows: dict[str, T], cells: dict[str, Callable[[T], str]]) -> str:
    names = [first, *map(header, rows)]
    columns: list[Column] = [
        [title, *(cell(row) for row in rows.values())] for title, cell in cells.items()
    ]
    return "\n\n".join(fitted(names, columns, plain, TERMINAL_WIDTH))


def _of(unit: str) -> str:
    return "" if unit == "documents" else f", {unit}"
