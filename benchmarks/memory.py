"""Memory and time to open and read mixtures of 10 and of 200 million tokens, by a process of each.

The mixtures are the rows of data/mixture over and over. Anonymous memory is what the process holds
for itself; the rest of the resident memory is libraries and pages of the files, which the system
takes back when it needs them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _timing import ROOT, print_header, require

from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.rows import (
    MIXTURE_FILE,
    OFFSET_DTYPE,
    Rows,
    read_mixture,
)

MIXTURE = ROOT / "data" / "mixture"
TOKENS = (10_000_000, 200_000_000)
STEPS, ROWS = 1000, 16
STATUS = Path("/proc/self/smaps_rollup")
ROWS_AT_A_TIME = 4096


def write_repeated(folder: Path, tokens: int) -> None:
    """A mixture of about this many training tokens, the domains in proportion."""
    source = read_mixture(MIXTURE)
    factor = tokens / sum(domain.train_tokens for domain in source.domains)
    index = json.loads((MIXTURE / MIXTURE_FILE).read_text(encoding="utf-8"))
    for path in MIXTURE.iterdir():
        if ".train." not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    for domain, entry in zip(source.domains, index["domains"], strict=True):
        rows = round(len(domain.train) * factor)
        counts = entry["splits"]["train"]
        counts["tokens"] = round(counts["tokens"] * rows / counts["rows"])
        counts["rows"] = rows
        counts["pieces"] = repeat_rows(domain.train, rows, folder / f"{domain.name}.train")
    (folder / MIXTURE_FILE).write_text(json.dumps(index), encoding="utf-8")


def repeat_rows(source: Rows, rows: int, stem: Path) -> int:
    """Write ``rows`` rows, those of ``source`` in turn; returns the number of pieces."""
    offsets, lengths = source.offsets.astype(np.int64), np.diff(source.offsets.astype(np.int64))
    with Path(f"{stem}.rows").open("wb") as tokens, Path(f"{stem}.pieces").open("wb") as pieces:
        for start in range(0, rows, ROWS_AT_A_TIME):
            chosen = np.arange(start, min(start + ROWS_AT_A_TIME, rows)) % len(source)
            tokens.write(source.tokens[chosen].tobytes())
            size = lengths[chosen]
            within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
            pieces.write(source.pieces[np.repeat(offsets[chosen], size) + within].tobytes())
    ends = np.cumsum(lengths[np.arange(rows) % len(source)])
    Path(f"{stem}.offsets").write_bytes(np.append(0, ends).astype(OFFSET_DTYPE).tobytes())
    return int(ends[-1])


def check(folder: Path) -> None:
    """Some of its rows are those of the source, pieces and all."""
    source, repeated = read_mixture(MIXTURE), read_mixture(folder)
    for domain, other in zip(source.domains, repeated.domains, strict=True):
        for row in np.linspace(0, len(other.train) - 1, 50).astype(int).tolist():
            mine = other.train.read(row)
            original = domain.train.read(row % len(domain.train))
            equal = all(map(np.array_equal, mine, original))
            require(equal, f"row {row} of {domain.name} to be a row of the source")


def resident() -> dict[str, float]:
    """MB of this process: all of it, and what no file stands behind."""
    lines = [line.split() for line in STATUS.read_text(encoding="ascii").splitlines()[1:]]
    kilobytes = {name.rstrip(":"): int(amount) for name, amount, *_ in lines}
    return {name: 1.024e-3 * kilobytes[name] for name in ("Rss", "Anonymous")}


def measure(folder: Path) -> dict[str, Any]:
    """Run in a process of its own: memory and seconds before, after opening and after reading."""
    found: dict[str, Any] = {"before": resident()}
    started = time.perf_counter()
    data = TrainingData(folder, seed=1)
    found["open_seconds"] = time.perf_counter() - started
    found["opened"] = resident()
    started = time.perf_counter()
    for step in range(STEPS):
        data.batch(step, 0, batch_size=ROWS, micro_batches=1)
    found["read_seconds"] = time.perf_counter() - started
    found["read"] = resident()
    return found


def main() -> None:
    print_header("Memory of the loader")
    if not (MIXTURE / MIXTURE_FILE).is_file() or not STATUS.is_file():
        print("nothing measured: it needs data/mixture (snakemake mixture) and Linux")
        return
    columns = ("open, ms", "opened", "read", "rss opened", "rss read", "tokens/s")
    read = STEPS * ROWS * read_mixture(MIXTURE).sequence_length
    print(
        f"\nanonymous and resident MB beyond those before opening; {read:,} tokens read\n"
        f"{'tokens':<14}" + "".join(f"{name:>12}" for name in columns)
    )
    for tokens in TOKENS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_repeated(folder, tokens)
            check(folder)
            command = [sys.executable, __file__, str(folder)]
            found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        grown = [
            found[when][kind] - found["before"][kind]
            for kind in ("Anonymous", "Rss")
            for when in ("opened", "read")
        ]
        line = f"{tokens:<14,}{1e3 * found['open_seconds']:12.2f}"
        line += "".join(f"{amount:12.1f}" for amount in grown)
        print(f"{line}{read / found['read_seconds']:12,.0f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]))))
    else:
        main()
