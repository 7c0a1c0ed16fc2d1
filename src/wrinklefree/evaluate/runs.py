"""Several runs in one table, as of a recipe under several seeds. Imports no torch."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.evaluate.columns import ABSENT, plain_rows
from wrinklefree.evaluate.scores import LABELS
from wrinklefree.tracking.artifact import MANIFEST, flatten, read_manifest

RESULTS = "results"
CONTROL = "research/control"
_ROOMS = ("data", "models", RESULTS)
_NAMED = 8


def compare_runs(runs: list[Path]) -> str:
    """Losses of every model, and what ternary weights cost: means, deviations, extremes.

    Parameters
    ----------
    runs : folders in which the pipeline ran, each with ``results``. The cost is that of
        ``research/control``, of the runs that have it.

    Returns
    -------
    A table in 80 columns, and below it the settings, but for seeds, in which runs are apart.

    Raises
    ------
    UserError : fewer than two runs, the same folder twice, or a run without results.
    """
    if len(runs) < 2 or len({run.resolve() for run in runs}) < len(runs):
        raise UserError(
            f"{', '.join(map(str, runs)) or 'none'}: two folders or more in which the pipeline"
            " ran are compared, each another one"
        )
    losses = [read_manifest(run / RESULTS).facts["loss"] for run in runs]
    costs = [
        {name: cost["mean"] for name, cost in read_manifest(run / CONTROL).facts.items()}
        for run in runs
        if (run / CONTROL / MANIFEST).is_file()
    ]
    rows = [["held-out loss (nats per token)", "runs", "mean", "deviation", "lowest", "highest"]]
    rows += [_row(LABELS.get(name, name), values) for name, values in _by_name(losses)]
    rows += [
        _row(f"cost of ternary weights, {LABELS.get(name, name)}", values)
        for name, values in _by_name(costs)
    ]
    return "\n".join([*plain_rows(rows), "", _apart(runs)])


def _row(name: str, values: list[float]) -> list[str]:
    deviation = f"{statistics.stdev(values):.3f}" if len(values) > 1 else ABSENT
    numbers = (statistics.fmean(values), min(values), max(values))
    mean, low, high = (f"{number:.3f}" for number in numbers)
    return [name, str(len(values)), mean, deviation, low, high]


def _by_name(runs: list[dict[str, float]]) -> list[tuple[str, list[float]]]:
    found = {name for run in runs for name in run}
    names = [*(name for name in LABELS if name in found), *sorted(found - set(LABELS))]
    return [(name, [run[name] for run in runs if name in run]) for name in names]


def _apart(runs: list[Path]) -> str:
    """The settings in which the runs are apart."""
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for run in settings for name in run)
    apart = [name for name in names if len({repr(run.get(name)) for run in settings}) > 1]
    others = [name for name in apart if not name.endswith((".seed", " seed", ".seeds"))]
    if not apart:
        return "All settings of the runs are alike, seeds too."
    if not others:
        return "The runs have other seeds and are alike in all other settings."
    more = [f"and {len(others) - _NAMED} more"] if len(others) > _NAMED else []
    return "\n  ".join(["The runs are apart in", *others[:_NAMED], *more])


def _settings(run: Path) -> dict[str, Any]:
    """Settings of every artifact of a run, by the artifact's folder and their dotted name."""
    folders = [manifest.parent for room in _ROOMS for manifest in (run / room).rglob(MANIFEST)]
    return {
        f"{folder.relative_to(run)}: {name}": value
        for folder in sorted(folders)
        for name, value in flatten(read_manifest(folder).settings).items()
    }
