"""All that the report says, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wrinklefree.evaluate.data_report.drops import Drops, drops_of
from wrinklefree.evaluate.data_report.lengths import Lengths, document_lengths
from wrinklefree.evaluate.data_report.overlap import Overlaps, find_overlaps
from wrinklefree.evaluate.data_report.shares import DomainShare, realised_shares
from wrinklefree.evaluate.data_report.texts import (
    Size,
    TextSample,
    lowest_ranks,
    read_source,
)
from wrinklefree.evaluate.settings import DataReportSettings
from wrinklefree.mixture.rows import DomainRows, read_mixture
from wrinklefree.schema.splits import SPLITS
from wrinklefree.tokens.shards import TokenFolder, read_tokens
from wrinklefree.tracking.artifact import read_manifest


@dataclass(frozen=True)
class Amount:
    """Text and what became of it."""

    documents: int
    bytes: int
    tokens: int
    """Ends of text included."""


@dataclass(frozen=True)
class SourceReport:
    """What is known of a source."""

    domain: str
    licence: str
    splits: dict[str, Amount]
    """What became tokens, by split."""
    drops: dict[str, Drops]
    """By stage, what it left out: ``fetch``, ``clean``, ``tokenize``."""

    def as_json(self) -> dict[str, Any]:
        """``sources.<name>`` of ``report.json``."""
        splits = {name: asdict(amount) for name, amount in self.splits.items()}
        about = {"domain": self.domain, "licence": self.licence}
        measured = {"bytes_per_token": bytes_per_token(self.splits)}
        return about | {"splits": splits} | measured | {"dropped": self.drops}


@dataclass(frozen=True)
class DomainReport:
    """What is known of a domain, all its sources together."""

    sources: list[str]
    splits: dict[str, Amount]
    lengths: Lengths
    """Lengths of training documents."""
    rows: dict[str, int]
    """By split."""
    pieces: dict[str, int]
    """By split: parts of documents in the rows, a whole document being one."""
    utilisation: dict[str, float]
    """By split: the part of the rows that is text."""
    share: DomainShare
    samples: list[TextSample]

    def as_json(self) -> dict[str, Any]:
        """``domains.<name>`` of ``report.json``; the samples are in ``samples.html``."""
        return {
            "sources": self.sources,
            "splits": {name: asdict(amount) for name, amount in self.splits.items()},
            "bytes_per_token": bytes_per_token(self.splits),
            "lengths": self.lengths.as_json(),
            "rows": self.rows,
            "pieces": self.pieces,
            "utilisation": self.utilisation,
            "shares": self.share.as_json(),
        }


@dataclass(frozen=True)
class DataReport:
    """The whole report."""

    settings: DataReportSettings
    sequence_length: int
    sources: dict[str, SourceReport]
    domains: dict[str, DomainReport]
    overlaps: Overlaps

    def largest_share_error(self) -> float:
        """How far the share of a domain in the long run is from what was asked, at most."""
        return max(abs(d.share.ordered - d.share.asked) for d in self.domains.values())


def total(amounts: Iterable[Amount]) -> Amount:
    """All together."""
    columns = [(a.documents, a.bytes, a.tokens) for a in amounts]
    return Amount(*(sum(column) for column in zip(*columns, strict=True)))


def bytes_per_token(splits: Mapping[str, Amount]) -> float | None:
    """Over both splits; ends of text stand for no bytes and don't count. None without a token."""
    tokens = sum(amount.tokens - amount.documents for amount in splits.values())
    return sum(amount.bytes for amount in splits.values()) / tokens if tokens else None


def measure(
    settings: DataReportSettings,
    raw: Mapping[str, Path],
    clean: Mapping[str, Path],
    tokens: Mapping[str, Path],
    mixture: Path,
    *,
    seed: int,
) -> DataReport:
    """Look at the artifacts of every source, given by its name, and at the mixture of them."""
    rows = read_mixture(mixture)
    folders = {name: read_tokens(folder) for name, folder in sorted(tokens.items())}
    sources: dict[str, SourceReport] = {}
    drawn: dict[str, list[TextSample]] = {domain.name: [] for domain in rows.domains}
    digests: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    for name, folder in folders.items():
        counts = {split: part.document_count for split, part in folder.splits.items()}
        number = settings.samples_per_domain
        texts = read_source(clean[name], counts, samples=number, seed=seed)
        drawn[folder.domain] += texts.samples
        for split in SPLITS:
            digests[split][name] = texts.digests[split]
        sources[name] = _source(raw[name], clean[name], folder, texts.sizes, texts.left)
    shares = realised_shares(
        mixture,
        rows,
        seed=seed,
        share_samples=settings.share_samples,
        read_samples=settings.read_samples,
    )
    return DataReport(
        settings=settings,
        sequence_length=rows.sequence_length,
        sources=sources,
        domains={
            domain.name: _domain(
                domain,
                rows.sequence_length,
                {name: source for name, source in sources.items() if source.domain == domain.name},
                folders,
                shares[domain.name],
                lowest_ranks(drawn[domain.name], settings.samples_per_domain),
            )
            for domain in rows.domains
        },
        overlaps=find_overlaps(digests["train"], digests["held_out"]),
    )


def _source(
    raw: Path, clean: Path, folder: TokenFolder, sizes: dict[str, Size], left: Size
) -> SourceReport:
    fetched = read_manifest(raw).facts
    return SourceReport(
        domain=folder.domain,
        licence=fetched.get("licence", ""),
        splits={
            split: Amount(size.documents, size.bytes, folder.splits[split].token_count)
            for split, size in sizes.items()
        },
        drops={
            "fetch": drops_of(fetched),
            "clean": drops_of(read_manifest(clean).facts),
            "tokenize": {"max_tokens": asdict(left)},
        },
    )


def _domain(
    domain: DomainRows,
    sequence_length: int,
    sources: dict[str, SourceReport],
    folders: dict[str, TokenFolder],
    share: DomainShare,
    samples: list[TextSample],
) -> DomainReport:
    """The report on the domain of ``sources``."""
    packed = {
        "train": (domain.train, domain.train_tokens),
        "held_out": (domain.held_out, domain.held_out_tokens),
    }
    shards = [shard for name in sources for shard in folders[name].splits["train"].shards]
    return DomainReport(
        sources=list(sources),
        splits={split: total(s.splits[split] for s in sources.values()) for split in SPLITS},
        lengths=document_lengths(shard.ends for shard in shards),
        rows={split: len(rows) for split, (rows, _) in packed.items()},
        pieces={split: len(rows.pieces) for split, (rows, _) in packed.items()},
        utilisation={
            split: tokens / max(len(rows) * sequence_length, 1)
            for split, (rows, tokens) in packed.items()
        },
        share=share,
        samples=samples,
    )
