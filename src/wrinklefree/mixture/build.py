"""``mixture``: the tokens of all sources as packed rows of one length, per domain and split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wrinklefree.errors import UserError
from wrinklefree.mixture.order import row_shares
from wrinklefree.mixture.pack import pack
from wrinklefree.mixture.rows import (
    MIXTURE_FILE,
    OFFSET_DTYPE,
    PIECE_DTYPE,
    TOKEN_BYTES_DTYPE,
    TOKEN_BYTES_FILE,
)
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.schema.splits import SPLITS
from wrinklefree.tokens.shards import (
    TokenFolder,
    TokenShard,
    TokenSplit,
    read_tokens,
    token_dtype,
    write_records,
)
from wrinklefree.tokens.tokenizer import (
    TOKENIZER_FILE,
    end_of_text_of,
    load_tokenizer,
    token_bytes,
    vocabulary_size_of,
)
from wrinklefree.tracking.files import sha256_of_file
from wrinklefree.tracking.progress import progress

ROWS_PER_WRITE_TOKENS = 1 << 22
LEAST_FILLED = {"train": 0.992, "held_out": 0.0}
"""Below which part of text in the rows whole documents are cut to fill them. Held-out documents
never are: what a cut takes from their context would be measured as loss."""


def build_mixture(
    settings: MixtureSettings, tokens: dict[str, Path], tokenizer: Path, folder: Path
) -> dict[str, Any]:
    """Write the rows of every domain and ``mixture.json``; return the facts.

    ``tokens``: token folders by source name. Sources of one domain are merged, interleaved in
    proportion to their sizes. Facts per domain: ``sources`` (documents by source and split) and of
    both splits rows, pieces, documents, tokens, ``documents_cut`` (how many are in more pieces than
    their length needs, to fill rows) and ``utilisation`` (the part of the rows that is text);
    ``epoch_samples``: after how many training samples the domain's rows have all been read once
    (absent for weight 0). Raises UserError for token folders that don't fit the tokenizer, a
    weighted domain without a training row and a domain without a held-out row.
    """
    loaded = load_tokenizer(tokenizer)
    size, end = vocabulary_size_of(loaded), end_of_text_of(loaded, tokenizer)
    merged = _by_domain(settings, tokens, tokenizer, size, end)
    domains: list[dict[str, Any]] = []
    for name in progress(sorted(settings.weights), "pack", "domains"):
        sources = merged.get(name, {})
        counts = {
            split: _write_rows(
                [source.splits[split] for source in sources.values()],
                folder / f"{name}.{split}",
                _RowFormat(settings.sequence_length, token_dtype(size), end, LEAST_FILLED[split]),
            )
            for split in SPLITS
        }
        _require_rows(name, settings.weights[name], counts)
        documents = {
            source: {split: part.document_count for split, part in tokens.splits.items()}
            for source, tokens in sources.items()
        }
        weight = settings.weights[name]
        domains.append({"name": name, "weight": weight, "sources": documents, "splits": counts})
    index = {
        "sequence_length": settings.sequence_length,
        "shuffle_buffer_size": settings.shuffle_buffer_size,
        "max_repetition": settings.max_repetition,
        "vocabulary_size": size,
        "end_of_text_id": end,
        "dtype": token_dtype(size).name,
        "domains": domains,
    }
    write_records(folder / TOKEN_BYTES_FILE, token_bytes(loaded).astype(TOKEN_BYTES_DTYPE))
    (folder / MIXTURE_FILE).write_text(f"{json.dumps(index, indent=2)}\n", encoding="utf-8")
    return {"domains": _facts(domains, settings.sequence_length)}


@dataclass(frozen=True)
class _RowFormat:
    """What the rows of one domain and split are like."""

    length: int
    dtype: np.dtype[Any]
    padding: int
    least_filled: float


def _by_domain(
    settings: MixtureSettings, tokens: dict[str, Path], tokenizer: Path, size: int, end: int
) -> dict[str, dict[str, TokenFolder]]:
    """The sources of each domain, by name in its order."""
    merged: dict[str, dict[str, TokenFolder]] = {}
    sha256 = sha256_of_file(tokenizer / TOKENIZER_FILE)
    for name in sorted(tokens):
        source = read_tokens(tokens[name])
        if (source.vocabulary_size, source.end_of_text_id) != (size, end):
            raise UserError(
                f"{tokens[name]} was made by another tokenizer: vocabulary"
                f" {source.vocabulary_size} and end of text {source.end_of_text_id}, expected"
                f" {size} and {end}; run the tokenize stage of {name} again"
            )
        if source.tokenizer not in (None, sha256):
            raise UserError(
                f"{tokens[name]} was made by another tokenizer than {tokenizer}, of as many ids;"
                f" run the tokenize stage of {name} again"
            )
        if source.domain not in settings.weights:
            raise UserError(
                f"{tokens[name]} is of domain {source.domain}, which mixture.weights does not name;"
                " give it a weight (0 leaves it out of training) or remove the source"
            )
        merged.setdefault(source.domain, {})[name] = source
    return merged


def _require_rows(name: str, weight: float, counts: dict[str, dict[str, int]]) -> None:
    if weight > 0 and counts["train"]["rows"] == 0:
        raise UserError(
            f"domain {name} has weight {weight:g} but no training documents; set its weight to 0,"
            " lower held_out.fraction or give it more text"
        )
    if counts["held_out"]["rows"] == 0:
        raise UserError(
            f"domain {name} has no held-out documents, so its loss can't be measured; raise"
            " held_out.fraction, set held_out_pattern or give it more text"
        )


def _write_rows(sources: list[TokenSplit], stem: Path, row_format: _RowFormat) -> dict[str, int]:
    """Pack one domain and split into ``<stem>.rows``, ``.pieces`` and ``.offsets``."""
    documents = _interleaved_documents(sources)
    length = row_format.length
    packing = pack(documents.length, length, least_filled=row_format.least_filled)
    offsets, rows = packing.offsets, len(packing.offsets) - 1
    shard = documents.shard[packing.document]
    start = documents.start[packing.document] + packing.start
    shards = [part for source in sources for part in source.shards]
    with Path(f"{stem}.rows").open("wb") as file:
        step = max(1, ROWS_PER_WRITE_TOKENS // length)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            row_tokens = np.full((last - first, length), row_format.padding, row_format.dtype)
            here = slice(offsets[first], offsets[last])
            row = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
            _gather(shards, shard[here], start[here], packing.length[here], row, row_tokens)
            file.write(row_tokens.tobytes())
    pieces = np.empty(len(packing.length), dtype=PIECE_DTYPE)
    pieces["document"] = documents.number[packing.document]
    pieces["start"], pieces["length"] = packing.start, packing.length
    write_records(Path(f"{stem}.pieces"), pieces)
    write_records(Path(f"{stem}.offsets"), offsets.astype(OFFSET_DTYPE))
    pieces_of_document = np.bincount(packing.document, minlength=len(documents.length))
    pieces_needed = -(-documents.length // length)
    return {
        "rows": rows,
        "pieces": len(pieces),
        "documents": len(documents.length),
        "documents_cut": int((pieces_of_document > pieces_needed).sum()),
        "tokens": int(documents.length.sum()),
    }


class _Documents(NamedTuple):
    """Documents of all sources of a domain; int64 [documents] each."""

    number: np.ndarray
    """Source after source."""
    shard: np.ndarray
    """Among all shards, source after source."""
    start: np.ndarray
    """Place of the first token within the shard."""
    length: np.ndarray


def _interleaved_documents(sources: list[TokenSplit]) -> _Documents:
    """All documents in the order of their relative position within their source."""
    columns: list[tuple[np.ndarray, ...]] = [(np.empty(0, dtype=np.int64),) * 3]
    positions = [np.empty(0)]
    shards = 0
    for source in sources:
        before = 0
        for shard in source.shards:
            ends = shard.ends.astype(np.int64)
            starts = np.concatenate([[0], ends[:-1]])
            columns.append((np.full(len(ends), shards), starts, ends - starts))
            positions.append((before + starts) / source.token_count)
            before += len(shard.tokens)
            shards += 1
    shard, start, length = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(np.concatenate(positions), kind="stable")
    return _Documents(order, shard[order], start[order], length[order])


def _gather(
    shards: list[TokenShard],
    shard: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    row: np.ndarray,
    row_tokens: np.ndarray,
) -> None:
    """Copy pieces (sorted by row) one behind the other into their rows of ``row_tokens``."""
    before = np.cumsum(lengths) - lengths
    first_of_row = np.searchsorted(row, row)
    columns = before - before[first_of_row]
    to = row * row_tokens.shape[1] + columns
    flat = row_tokens.reshape(-1)
    for number in np.unique(shard).tolist():
        mine = shard == number
        size = lengths[mine]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        flat[np.repeat(to[mine], size) + within] = shards[number].tokens[
            np.repeat(starts[mine], size) + within
        ]


def _facts(domains: list[dict[str, Any]], length: int) -> dict[str, Any]:
    weights = [domain["weight"] for domain in domains]
    rows = [domain["splits"]["train"]["rows"] for domain in domains]
    tokens = [domain["splits"]["train"]["tokens"] for domain in domains]
    facts: dict[str, Any] = {}
    for domain, share in zip(domains, row_shares(weights, rows, tokens), strict=True):
        facts[domain["name"]] = {"sources": domain["sources"]} | {
            split: {
                **counts,
                "utilisation": counts["tokens"] / max(counts["rows"] * length, 1),
            }
            for split, counts in domain["splits"].items()
        }
        if share > 0:
            facts[domain["name"]]["epoch_samples"] = domain["splits"]["train"]["rows"] / share
    return facts
