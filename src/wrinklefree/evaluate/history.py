"""Reading ``history.jsonl``, the record of every optimizer step of a training stage."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.evaluate.smoothing import downsample
from wrinklefree.train.history import read_history as entries_of

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
    step without its rows. A step that was skipped has a line without a loss.
    """
    records: list[dict[str, Any]] = entries_of(folder)
    names = sorted({name for record in records for name in record} - set(_COUNTERS))
    metrics = {name: [_number(record.get(name)) for record in records] for name in names}
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


def _number(value: float | None) -> float:
    return float(value) if value is not None else math.nan
