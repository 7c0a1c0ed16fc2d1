"""What cached logits of a teacher take: bytes of a token, time to write them, time of a step.

Of a finished run in this folder, or in ``--run``: its dense base teaches a ternary copy of itself
on rows of its mixture, alive and cached, by the divergence alone. A step is the student's passes
forward and backward with the teacher's part of them.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _timing import ROOT, print_header, print_table, require, time_in_turns

from wrinklefree.distill.vocabulary import vocabulary_size
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models.folder import load_model
from wrinklefree.models.transforms import ternary
from wrinklefree.train.cached_teacher import CachedTeacher, LogitsCache, fill_cache
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.objectives.distillation import DenseTeacher, distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import TrainStep
from wrinklefree.train.objectives.question import Teacher
from wrinklefree.train.runtime import Runtime

ALONE = DistillationSettings.model_validate(
    {"weights": {"cross_entropy": 0.0, "logits": 1.0, "relations": 0.0}, "temperature": 1.0}
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=ROOT)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--kept", type=int, nargs="+", default=[8, 64, 256])
    arguments = parser.parse_args()
    if not (arguments.run / "models/base/manifest.json").is_file():
        print("models/base is missing, nothing timed; make it with: snakemake base")
        return
    data, runtime = TrainingData(arguments.run / "data/mixture", seed=0), Runtime.here("auto")
    teacher = load_model(arguments.run / "models/base", "dense")[0]
    student = copy.deepcopy(teacher)
    ternary().apply(student)
    print_header(f"Cached logits of a teacher, {runtime.describe()}")
    batches = list(data.batches_of(arguments.rows, arguments.batch_size))
    tokens = sum(batch.tokens_BT.numel() for batch in batches)
    vocabulary = vocabulary_size(teacher)

    def steps(taught: Teacher) -> Callable[[], float]:
        target, turn = distillation(NextToken(), ALONE, taught), itertools.cycle(batches)
        train_step = TrainStep(student, target)

        def step() -> float:
            prepared = target.corruption.prepare(next(turn), 0)
            with runtime.computing():
                loss = target.loss(train_step(prepared), prepared, 1.0).loss
            loss.backward()
            student.zero_grad()
            return float(loss.detach()) / target.corruption.denominator(prepared)

        return step

    calls = {"live": steps(DenseTeacher(teacher))}
    truth = calls["live"]()
    with tempfile.TemporaryDirectory() as scratch:
        print(f"\n{'kept':>8}{'bytes a token':>16}{'written, tokens/s':>20}{'KL, of the live':>18}")
        for kept in arguments.kept:
            folder, started = Path(scratch) / str(kept), time.perf_counter()
            how = {"rows": arguments.rows, "kept": kept, "temperature": ALONE.temperature}
            fill_cache(LogitsCache(folder), teacher, batches, runtime, **how)
            took = time.perf_counter() - started
            size = sum(path.stat().st_size for path in folder.iterdir())
            calls[f"{kept} kept"] = steps(CachedTeacher(LogitsCache(folder), vocabulary))
            share = calls[f"{kept} kept"]() / truth
            require(0.1 < share < 1.05, f"a part of the live KL, not {share} of it")
            print(f"{kept:>8,}{size / tokens:>16,.0f}{tokens / took:>20,.0f}{share:>18.4f}")
        print_table("a step", time_in_turns(calls), ["live"], tokens // len(batches))


if __name__ == "__main__":
    main()
