"""Reading ``history.jsonl``, the record of every optimizer step of a training stage."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.evaluate.smoothing import downsample
from wrinklefree.train.history import HISTORY

_COUNTERS = ("step", "tokens")
_CURVES = {
    "loss": "train/loss",
    "lambda": "train/lambda",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm_raw",
}
"""Columns of :func:`curves_csv`, and their metrics."""


@dataclass(frozen=True)
class History:
    """Metrics over the steps of one training stage, all lists of the same length."""

    steps: list[int]
    """From 1, rising."""
    tokens: list[int]
    """Training tokens seen after each step, rising."""
    metrics: dict[str, list[float]]
    """By name (``train/loss``); NaN at steps that did not report the metric."""

    def series(self, name: str) -> list[float]:
        """Values of a metric, NaN where (or if never) reported."""
        return self.metrics.get(name, [math.nan] * len(self.steps))

    def reports(self, name: str) -> bool:
        """Whether the metric has a finite value at any step."""
        return any(map(math.isfinite, self.metrics.get(name, [])))

    def domains(self) -> list[str]:
        """Domains whose training loss was reported, sorted."""
        prefix = "train/loss/"
        return sorted(name.removeprefix(prefix) for name in self.metrics if name.startswith(prefix))


def read_history(folder: Path) -> History:
    """The history of the training stage that wrote ``folder``.

    A value that is absent, null or not finite is a gap in its curve, as the loss of a domain in a
    step without its rows. A step whose gradient is not finite has no line: training stops there.

    Raises
    ------
    UserError : the file is missing, empty, truncated, out of order or lacks ``train/loss``.
    """
    file = folder / HISTORY
    if not file.is_file():
        raise UserError(
            f"{file}: missing; expected the record of a training stage, rerun the stage"
        )
    records: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        records.append(_record(line, f"{file}, line {number}"))
        if number > 1 and not _follows(records[-2], records[-1]):
            raise _corrupt(f"{file}, line {number}", "step or tokens do not rise")
    if not records:
        raise UserError(f"{file}: empty; expected a line per optimizer step, rerun the stage")
    names = sorted({name for record in records for name in record} - set(_COUNTERS))
    metrics = {name: [_number(record.get(name)) for record in records] for name in names}
    if not any(map(math.isfinite, metrics.get("train/loss", []))):
        raise _corrupt(str(file), "no step has a finite train/loss")
    steps, tokens = ([record[name] for record in records] for name in _COUNTERS)
    return History(steps, tokens, metrics)


def curves_csv(history: History) -> str:
    """Loss (nats per token), λ, rate and gradient norm over steps and tokens, as text.

    A long training is thinned to about 600 lines that keep its extremes. A metric that it never
    reported has no column.
    """
    loss = history.series("train/loss")
    reported = [index for index, value in enumerate(loss) if math.isfinite(value)]
    kept, _ = downsample(reported, [loss[index] for index in reported])
    series = {name: history.series(metric) for name, metric in _CURVES.items()}
    names = [name for name, metric in _CURVES.items() if history.reports(metric)]
    lines = [",".join((*_COUNTERS, *names))]
    for index in map(int, kept):
        values = (series[name][index] for name in names)
        cells = [repr(value) if math.isfinite(value) else "" for value in values]
        lines.append(",".join([str(history.steps[index]), str(history.tokens[index]), *cells]))
    return "\n".join(lines) + "\n"


def _record(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _corrupt(where, f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise _corrupt(where, f"expected an object, found {type(record).__name__}")
    for name in _COUNTERS:
        value = record.get(name)
        if type(value) is not int or value < 0:
            raise _corrupt(where, f"{name} is {value!r}, expected a whole number")
    for name, value in record.items():
        if value is not None and type(value) not in (int, float):
            raise _corrupt(where, f"{name} is {value!r}, expected a number")
    return record


def _follows(previous: dict[str, Any], record: dict[str, Any]) -> bool:
    return record["step"] > previous["step"] and record["tokens"] >= previous["tokens"]


def _number(value: float | None) -> float:
    return float(value) if value is not None else math.nan


def _corrupt(where: str, what: str) -> UserError:
    return UserError(f"{where}: {what}; the file is damaged, rerun the stage that wrote it")
