"""Best-fit packing against next-fit: speed and how much of the rows is filled."""

from __future__ import annotations

import numpy as np
from _timing import ROOT, default_settings, print_header, print_table, require, time_in_turns

from wrinklefree.data.pack import Packing, pack, split_documents
from wrinklefree.data.shards import INDEX_FILE, read_tokens

LONG_ROW = 2048
CHECKED_PIECES = 3000


def document_lengths() -> tuple[str, dict[str, np.ndarray]]:
    """Where they come from, and tokens of each training document by source, int64."""
    folders = [index.parent for index in sorted(ROOT.glob(f"data/tokens/*/{INDEX_FILE}"))]
    if folders:
        ends = {f.name: read_tokens(f).splits["train"].ends.astype(np.int64) for f in folders}
        lengths = {name: np.diff(cumulative, prepend=0) for name, cumulative in ends.items()}
        return "the documents in data/tokens", lengths
    drawn = np.random.default_rng(0).lognormal(np.log(400), 1.2, size=20_000)
    made_up = {"log-normal": np.maximum(drawn, 1).astype(np.int64)}
    return "made-up documents (no data/tokens): log-normal, median 400, sigma 1.2, seed 0", made_up


def next_fit(lengths: np.ndarray, sequence_length: int) -> int:
    """Rows when each piece goes into the last row or opens the next one."""
    rows, room = 0, 0
    for length in lengths.tolist():
        if length > room:
            rows, room = rows + 1, sequence_length
        room -= length
    return rows


def room_left(lengths: np.ndarray, sequence_length: int) -> list[int]:
    """Best-fit decreasing by search through all rows: the room that each row has left, sorted."""
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append(min(fitting, default=sequence_length) - length)
    return sorted(rooms)


def row_sums(packing: Packing, lengths: np.ndarray) -> np.ndarray:
    return np.add.reduceat(lengths[packing.order], packing.offsets[:-1])


def check(name: str, lengths: np.ndarray, sequence_length: int) -> None:
    packing = pack(lengths, sequence_length)
    every_piece = np.array_equal(np.sort(packing.order), np.arange(len(lengths)))
    require(every_piece, f"every piece of {name} in one row")
    require(row_sums(packing, lengths).max() <= sequence_length, f"no row of {name} overfull")
    some = np.random.default_rng(1).choice(lengths, min(CHECKED_PIECES, len(lengths)))
    left = np.sort(sequence_length - row_sums(pack(some, sequence_length), some)).tolist()
    require(left == room_left(some, sequence_length), f"rows of {name} filled as by search")


def main() -> None:
    settings, _ = default_settings()
    origin, documents = document_lengths()
    print_header(f"Packing of {origin}")
    for length in (settings.mixture.sequence_length, LONG_ROW):
        pieces = {
            name: split_documents(np.zeros_like(sizes), sizes, length)[2]
            for name, sizes in documents.items()
        }
        for name, sizes in pieces.items():
            check(name, sizes, length)
        calls = {
            "next-fit": lambda p=pieces, t=length: [next_fit(sizes, t) for sizes in p.values()],
            "best-fit": lambda p=pieces, t=length: [pack(sizes, t) for sizes in p.values()],
        }
        seconds = time_in_turns(calls)
        tokens = sum(int(sizes.sum()) for sizes in pieces.values())
        count = sum(map(len, pieces.values()))
        full = sum(int((sizes == length).sum()) for sizes in pieces.values())
        title = f"rows of {length} tokens, {count:,} pieces of which {full:,} fill a row"
        print_table(title, seconds, ["next-fit"], tokens)
        print(f"{'utilisation, percent':<26}{'best-fit':>9}{'next-fit':>9}{'ratio':>9}")
        for name, sizes in pieces.items():
            best, following = len(pack(sizes, length).offsets) - 1, next_fit(sizes, length)
            filled = [100 * sizes.sum() / (rows * length) for rows in (best, following)]
            print(f"{name:<26}{filled[0]:9.2f}{filled[1]:9.2f}{following / best:9.3f}")


if __name__ == "__main__":
    main()
