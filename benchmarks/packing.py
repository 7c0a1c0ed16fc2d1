"""Best-fit packing against next-fit: speed and how much of the rows is filled."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from _timing import ROOT, default_settings, print_header, print_table, require, time_in_turns

from wrinklefree.mixture.build import LEAST_FILLED
from wrinklefree.mixture.pack import Packing, pack
from wrinklefree.tokens.shards import INDEX_FILE, read_tokens

LENGTHS = (512, 2048)
"""Tokens of a row, beside those of the default settings."""
CHECKED_DOCUMENTS = 2000
FLOOR = LEAST_FILLED["train"]


def document_lengths() -> tuple[str, dict[str, np.ndarray]]:
    """Where they come from, and tokens of each training document by domain, int64."""
    folders = [index.parent for index in sorted(ROOT.glob(f"data/tokens/*/{INDEX_FILE}"))]
    if folders:
        lengths = defaultdict(list)
        for folder in map(read_tokens, folders):
            for shard in folder.splits["train"].shards:
                lengths[folder.domain].append(np.diff(shard.ends.astype(np.int64), prepend=0))
        found = {domain: np.concatenate(parts) for domain, parts in lengths.items()}
        return "the documents in data/tokens", found
    drawn = np.random.default_rng(0).lognormal(np.log(400), 1.2, size=20_000)
    made_up = {"log-normal": np.maximum(drawn, 1).astype(np.int64)}
    return "made-up documents (no data/tokens): log-normal, median 400, sigma 1.2, seed 0", made_up


def next_fit(lengths: np.ndarray, sequence_length: int) -> int:
    """Rows when each piece goes into the last row or opens the next one."""
    full = int((lengths // sequence_length).sum())
    rows, room = full, 0
    for length in (lengths % sequence_length).tolist():
        if length > room:
            rows, room = rows + 1, sequence_length
        room -= length
    return rows


def room_left(lengths: np.ndarray, sequence_length: int) -> list[int]:
    """Best-fit decreasing by search through all rows: the room that each row has left, sorted."""
    rooms = [0] * int((lengths // sequence_length).sum())
    for length in sorted((lengths % sequence_length).tolist(), reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting and length:
            rooms.remove(min(fitting))
        if length:
            rooms.append(min(fitting, default=sequence_length) - length)
    return sorted(rooms)


def row_sums(packing: Packing) -> np.ndarray:
    return np.add.reduceat(packing.length, packing.offsets[:-1])


def check(name: str, lengths: np.ndarray, sequence_length: int) -> None:
    packing = pack(lengths, sequence_length, least_filled=FLOOR)
    by_place = np.lexsort((packing.start, packing.document))
    ends = (packing.start + packing.length)[by_place]
    last = np.flatnonzero(np.diff(packing.document[by_place], append=len(lengths)))
    begins = np.concatenate([[0], ends[:-1]])
    begins[last[:-1] + 1] = 0
    require(np.array_equal(ends[last], lengths), f"every document of {name} to its end")
    require(np.array_equal(begins, packing.start[by_place]), f"no token of {name} in two pieces")
    require(row_sums(packing).max() <= sequence_length, f"no row of {name} overfull")
    some = np.random.default_rng(1).choice(lengths, min(CHECKED_DOCUMENTS, len(lengths)))
    some = np.minimum(some, 4 * sequence_length)
    left = np.sort(sequence_length - row_sums(pack(some, sequence_length))).tolist()
    require(left == room_left(some, sequence_length), f"rows of {name} filled as by search")


def print_utilisation(documents: dict[str, np.ndarray], sequence_length: int) -> None:
    headings = ("best-fit", "uncut", "next-fit", "cut, %")
    print(f"{'utilisation, percent':<26}" + "".join(f"{name:>9}" for name in headings))
    for name, sizes in documents.items():
        packing = pack(sizes, sequence_length, least_filled=FLOOR)
        rows = (
            len(packing.offsets) - 1,
            len(pack(sizes, sequence_length).offsets) - 1,
            next_fit(sizes, sequence_length),
        )
        filled = [100 * sizes.sum() / (count * sequence_length) for count in rows]
        pieces = np.bincount(packing.document)
        cut = 100 * np.mean((sizes <= sequence_length) & (pieces > 1))
        print(f"{name:<26}" + "".join(f"{value:9.2f}" for value in (*filled, cut)))


def main() -> None:
    settings, _ = default_settings()
    origin, documents = document_lengths()
    print_header(f"Packing of {origin}")
    tokens = sum(int(sizes.sum()) for sizes in documents.values())
    for length in (settings.mixture.sequence_length, *LENGTHS):
        for name, sizes in documents.items():
            check(name, sizes, length)
        calls = {
            "next-fit": lambda t=length: [next_fit(d, t) for d in documents.values()],
            "best-fit, documents uncut": lambda t=length: [pack(d, t) for d in documents.values()],
            "best-fit": lambda t=length: [
                pack(d, t, least_filled=FLOOR) for d in documents.values()
            ],
        }
        count = sum(map(len, documents.values()))
        title = f"rows of {length} tokens, {count:,} documents, {tokens:,} tokens"
        print_table(title, time_in_turns(calls), ["next-fit"], tokens)
        print_utilisation(documents, length)


if __name__ == "__main__":
    main()
