"""Memory and time of a distilling step by the size of its blocks, and with no blocks at all.

A block is of tokens, whose logits are there at once, or of queries, whose relations are
(``kernels/sum_by_blocks``). Each size has a process of its own: memory is the largest that it ever
had beyond what it had before the step. Rows are longer and the vocabulary is larger than those of
the default run, whose steps are one block.

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _timing import default_settings, print_header, require
from torch import Tensor

from wrinklefree.kernels import sum_by_blocks
from wrinklefree.mixture.batch import Batch
from wrinklefree.models import forward
from wrinklefree.models.dense import build_scratch
from wrinklefree.train.objectives import distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import TrainStep

SIZES: dict[str, tuple[int, int, int]] = {
    "no blocks": (2**62, 1, 1),
    "as they are": (
        sum_by_blocks.BLOCK_NUMBERS,
        forward.LEAST_TOKENS,
        distillation.LEAST_QUERIES,
    ),
    "an eighth": (
        sum_by_blocks.BLOCK_NUMBERS // 8,
        forward.LEAST_TOKENS // 8,
        distillation.LEAST_QUERIES // 8,
    ),
}
"""Numbers of a block, and its fewest tokens and queries."""
REPEATS = 3


def set_blocks(name: str) -> None:
    sizes = SIZES[name]
    sum_by_blocks.BLOCK_NUMBERS, forward.LEAST_TOKENS, distillation.LEAST_QUERIES = sizes


def random_rows(rows: int, length: int, vocabulary: int) -> Batch:
    """Two documents in each row."""
    place_BT = torch.arange(length).repeat(rows, 1)
    second_BT = place_BT >= length // 3
    document_BT = second_BT.long()
    position_BT = torch.where(second_BT, place_BT - length // 3, place_BT)
    row_B = torch.arange(rows)
    tokens_BT = torch.randint(vocabulary, (rows, length))
    return Batch(
        tokens_BT,
        document_BT,
        position_BT,
        document_BT,
        position_BT,
        torch.zeros_like(row_B),
        row_B,
    )


def prepare(rows: int, length: int, vocabulary: int) -> Callable[[], list[Tensor]]:
    """A step that gives the loss and every gradient."""
    settings, scratch = default_settings()
    torch.manual_seed(settings.seed)
    student, teacher = (
        build_scratch(scratch.model, vocabulary, length, 0, settings.seed + n) for n in (0, 1)
    )
    target = distillation.distillation(NextToken(), settings.distill.ar, teacher)
    step, batch = TrainStep(student, target), random_rows(rows, length, vocabulary)
    prepared = target.corruption.prepare(batch, 0)
    denominator = target.corruption.denominator(prepared)

    def run() -> list[Tensor]:
        student.zero_grad()
        loss = target.loss(step(prepared), prepared, denominator).loss
        loss.backward()
        return [loss.detach()] + [
            p.grad.clone() for p in student.parameters() if p.grad is not None
        ]

    return run


def check() -> None:
    """Small blocks give what one gives."""
    run = prepare(2, 256, 4096)
    found: dict[str, list[Tensor]] = {}
    for name in ("no blocks", "an eighth"):
        set_blocks(name)
        found[name] = run()
    for mine, theirs in zip(found["an eighth"], found["no blocks"], strict=True):
        require(bool((mine - theirs).norm() <= 1e-4 * theirs.norm()), "blocks to change nothing")


def measure(name: str, rows: int, length: int, vocabulary: int) -> dict[str, Any]:
    """Run in a process of its own: MB beyond those before the step, and seconds of each step."""
    set_blocks(name)
    run, seconds = prepare(rows, length, vocabulary), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"megabytes": 1.024e-3 * (peak - before), "seconds": seconds[1:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=32_768)
    parser.add_argument("--measure", choices=SIZES)
    arguments = parser.parse_args()
    shape = (arguments.rows, arguments.length, arguments.vocabulary)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, *shape)))
        return
    print_header(
        f"A distilling step of {shape[0]} rows of {shape[1]} tokens, vocabulary {shape[2]}"
    )
    check()
    print(f"\n{'blocks':<14}{'peak, MB':>10}{'seconds':>10}{'min':>8}{'max':>8}")
    for name in SIZES:
        command = [sys.executable, __file__, "--measure", name]
        for option, number in zip(("--rows", "--length", "--vocabulary"), shape, strict=True):
            command += [option, str(number)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        times = found["seconds"]
        line = f"{name:<14}{found['megabytes']:10,.0f}{statistics.median(times):10.2f}"
        print(f"{line}{min(times):8.2f}{max(times):8.2f}")


if __name__ == "__main__":
    main()
