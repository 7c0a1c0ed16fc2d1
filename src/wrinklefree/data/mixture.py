"""``mixture``: the tokens of all sources as packed rows of one length, per domain and split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.config.tokens import MixtureSettings
from wrinklefree.data.order import row_shares
from wrinklefree.data.pack import pack, split_documents
from wrinklefree.data.progress import progress
from wrinklefree.data.rows import (
    MIXTURE_FILE,
    OFFSET_DTYPE,
    PIECE_DTYPE,
    TOKEN_BYTES_DTYPE,
    TOKEN_BYTES_FILE,
)
from wrinklefree.data.shards import (
    SPLITS,
    TokenFolder,
    TokenSplit,
    read_tokens,
    token_dtype,
    write_records,
)
from wrinklefree.data.tokenizer import end_of_text_id, token_bytes, vocabulary_size
from wrinklefree.errors import UserError

ROWS_PER_WRITE_TOKENS = 1 << 22


def build_mixture(
    settings: MixtureSettings, tokens: dict[str, Path], tokenizer: Path, folder: Path
) -> dict[str, Any]:
    """Write the rows of every domain and ``mixture.json``; return the facts.

    ``tokens``: token folders by source name. Sources of one domain are merged, interleaved in
    proportion to their sizes. Facts per domain: rows, tokens and utilisation (the part of the rows
    that is not padding) of both splits; ``epoch_samples``: after how many training samples the
    domain's rows have all been read once (absent for weight 0). Raises UserError for token folders
    that don't fit the tokenizer, a weighted domain without a training row and a domain without a
    held-out row.
    """
    size, end = vocabulary_size(tokenizer), end_of_text_id(tokenizer)
    merged = _by_domain(settings, tokens, size, end)
    domains: list[dict[str, Any]] = []
    for name in progress(sorted(settings.weights), "pack", "domains"):
        sources = merged.get(name, [])
        counts = {
            split: _write_rows(
                [source.splits[split] for source in sources],
                folder / f"{name}.{split}",
                settings.sequence_length,
                token_dtype(size),
                end,
            )
            for split in SPLITS
        }
        _require_rows(name, settings.weights[name], counts)
        domains.append({"name": name, "weight": settings.weights[name], "splits": counts})
    index = {
        "sequence_length": settings.sequence_length,
        "shuffle_buffer_size": settings.shuffle_buffer_size,
        "vocabulary_size": size,
        "end_of_text_id": end,
        "dtype": token_dtype(size).name,
        "domains": domains,
    }
    write_records(folder / TOKEN_BYTES_FILE, token_bytes(tokenizer).astype(TOKEN_BYTES_DTYPE))
    (folder / MIXTURE_FILE).write_text(f"{json.dumps(index, indent=2)}\n", encoding="utf-8")
    return {"domains": _facts(domains, settings.sequence_length)}


def _by_domain(
    settings: MixtureSettings, tokens: dict[str, Path], size: int, end: int
) -> dict[str, list[TokenFolder]]:
    merged: dict[str, list[TokenFolder]] = {}
    for name in sorted(tokens):
        source = read_tokens(tokens[name])
        if (source.vocabulary_size, source.end_of_text_id) != (size, end):
            raise UserError(
                f"{tokens[name]} was made by another tokenizer: vocabulary"
                f" {source.vocabulary_size} and end of text {source.end_of_text_id}, expected"
                f" {size} and {end}; run the tokenize stage of {name} again"
            )
        if source.domain not in settings.weights:
            raise UserError(
                f"{tokens[name]} is of domain {source.domain}, which mixture.weights does not name;"
                " give it a weight (0 leaves it out of training) or remove the source"
            )
        merged.setdefault(source.domain, []).append(source)
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


def _write_rows(
    sources: list[TokenSplit], stem: Path, length: int, dtype: np.dtype[Any], end: int
) -> dict[str, int]:
    """Pack one domain and split into ``<stem>.rows``, ``.pieces`` and ``.offsets``."""
    source, starts, lengths = _interleaved_pieces(sources, length)
    packing = pack(lengths, length)
    source, starts, lengths = (a[packing.order] for a in (source, starts, lengths))
    rows = len(packing.offsets) - 1
    with Path(f"{stem}.rows").open("wb") as file:
        step = max(1, ROWS_PER_WRITE_TOKENS // length)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            row_tokens = np.full((last - first, length), end, dtype=dtype)
            here = slice(packing.offsets[first], packing.offsets[last])
            row = np.repeat(np.arange(last - first), np.diff(packing.offsets[first : last + 1]))
            _gather(sources, source[here], starts[here], lengths[here], row, row_tokens)
            file.write(row_tokens.tobytes())
    write_records(Path(f"{stem}.pieces"), lengths.astype(PIECE_DTYPE))
    write_records(Path(f"{stem}.offsets"), packing.offsets.astype(OFFSET_DTYPE))
    return {"rows": rows, "pieces": len(lengths), "tokens": int(lengths.sum())}


def _interleaved_pieces(
    sources: list[TokenSplit], length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(source, start, length) of all pieces, documents in the order of their relative position."""
    columns = []
    for number, split in enumerate(sources):
        ends = split.ends.astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]])[: len(ends)]
        position = starts / max(len(split.tokens), 1)
        columns.append((np.full(len(ends), number), starts, ends - starts, position))
    if not columns:
        none = np.empty(0, dtype=np.int64)
        return none, none, none
    source, starts, lengths, position = (np.concatenate(c) for c in zip(*columns, strict=True))
    order = np.argsort(position, kind="stable")
    document, piece_starts, piece_lengths = split_documents(starts[order], lengths[order], length)
    return source[order][document], piece_starts, piece_lengths


def _gather(
    sources: list[TokenSplit],
    source: np.ndarray,
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
    for number, split in enumerate(sources):
        mine = source == number
        size = lengths[mine]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        flat[np.repeat(to[mine], size) + within] = split.tokens[
            np.repeat(starts[mine], size) + within
        ]


def _facts(domains: list[dict[str, Any]], length: int) -> dict[str, Any]:
    weights = [domain["weight"] for domain in domains]
    rows = [domain["splits"]["train"]["rows"] for domain in domains]
    tokens = [domain["splits"]["train"]["tokens"] for domain in domains]
    facts: dict[str, Any] = {}
    for domain, share in zip(domains, row_shares(weights, rows, tokens), strict=True):
        facts[domain["name"]] = {
            split: {
                **counts,
                "utilisation": counts["tokens"] / max(counts["rows"] * length, 1),
            }
            for split, counts in domain["splits"].items()
        }
        if share > 0:
            facts[domain["name"]]["epoch_samples"] = domain["splits"]["train"]["rows"] / share
    return facts
