"""What the benchmarks share: comparing, timing in turns, printing. Run alone it does nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.config.load import validate
from wrinklefree.config.parameters import Parameters
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.mixture.rows import MIXTURE_FILE
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.transforms import ternary
from wrinklefree.schema.load import read_yaml
from wrinklefree.train.base_settings import ScratchSettings

ROOT = Path(__file__).parents[1]
H100_BYTES_PER_SECOND, H100_BFLOAT16 = 3.35e12, 990e12
NOT_MEASURED = "not measured: no CUDA device"
MIXTURE = ROOT / "data" / "mixture"


def default_settings() -> tuple[Parameters, ScratchSettings]:
    """The settings in ``params.yaml`` and, of these, the shape of the model that is timed."""
    settings = validate(read_yaml(ROOT / "params.yaml"))
    if settings.base.scratch is None:
        raise SystemExit("params.yaml has no base.scratch: benchmarks run with the default preset")
    return settings, settings.base.scratch


def default_model() -> tuple[TrainingData, PreTrainedModel]:
    """The mixture of the default run, and its model before stage 2, untrained."""
    parameters, scratch = default_settings()
    if not (MIXTURE / MIXTURE_FILE).is_file():
        print("data/mixture is missing, nothing timed; make it with: snakemake mixture")
        raise SystemExit
    data = TrainingData(MIXTURE, seed=parameters.seed)
    vocabulary, length, end = data.vocabulary_size, data.sequence_length, data.end_of_text_id
    model = build_scratch(scratch.model, vocabulary, length, end, parameters.seed)
    ternary().apply(model)
    return data, model


def print_header(title: str) -> None:
    """Title, machine and commit: what figures are worthless without."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    print(
        f"\n{title}\n{os.cpu_count()} CPUs, torch {torch.__version__},"
        f" {torch.get_num_threads()} threads, commit {commit}"
    )


def require(true: bool, what: str) -> None:
    """Stop, with no figure printed, unless ``what`` holds."""
    if not true:
        raise SystemExit(f"WRONG, nothing timed: expected {what}")


def require_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Stop unless ``‖actual - expected‖ <= tolerance * ‖expected‖`` (Frobenius)."""
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    require(bool(error <= tolerance), f"{what} within {tolerance:g}, is off by {error:.2g}")


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], repeats: int = 9
) -> dict[str, list[float]]:
    """Seconds of each repeat of each call, after one warm-up.

    The calls take turns, so that a slow spell of the machine hits all of them and ratios hold.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def print_table(
    title: str,
    seconds: Mapping[str, list[float]],
    baselines: Iterable[str],
    tokens: int | None = None,
) -> None:
    """Median, min and max of each call, tokens/s at the median, and ratios to the baselines.

    A ratio is taken within each repeat: its median, min and max over the repeats.
    """
    baselines = list(baselines)
    rate = f"{'tokens/s':>16}" if tokens else ""
    headings = "".join(f"  {'time / ' + name:>26}" for name in baselines)
    print(f"\n{title}\n{'milliseconds':<26}{'median':>9}{'min':>9}{'max':>9}{rate}{headings}")
    for name, mine in seconds.items():
        line = f"{name:<26}"
        line += "".join(f"{1e3 * f(mine):9.4g}" for f in (statistics.median, min, max))
        if tokens:
            line += f"{tokens / statistics.median(mine):16,.0f}"
        for baseline in baselines:
            if name == baseline:
                line += f"  {'1':>8} {'':17}"
                continue
            ratios = [a / b for a, b in zip(mine, seconds[baseline], strict=True)]
            spread = f"({min(ratios):.3g} to {max(ratios):.3g})"
            line += f"  {statistics.median(ratios):>8.3g} {spread:>17}"
        print(line.rstrip())


def time_on_gpu(title: str, calls: Mapping[str, Callable[[], object]], *baselines: str) -> None:
    """Time and print calls on a GPU: by its own clock, with nothing of the operands in its cache.

    The write that empties the cache is under way while a call is being launched, so that the time
    of launching does not hide that of a kernel of microseconds.
    """
    emptied = torch.empty(2**28, dtype=torch.int8, device="cuda")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(31):
        for name, call in calls.items():
            started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            emptied.zero_()
            started.record()
            call()
            ended.record()
            torch.cuda.synchronize()
            if repeat:
                seconds[name].append(started.elapsed_time(ended) / 1e3)
    print_table(title, seconds, baselines)
