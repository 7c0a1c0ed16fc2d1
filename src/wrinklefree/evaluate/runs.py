"""Several runs in one table, as of a recipe under several seeds. Imports no torch."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.evaluate.columns import ABSENT, plain_rows
from wrinklefree.evaluate.scores import LABELS
from wrinklefree.tracking.artifact import MANIFEST, flatten, read_manifest

RESULTS = "results"
CONTROL = "research/control"
_ROOMS = ("data", "models", RESULTS, CONTROL)
_NAMED = 8
BASE, STUDENT = "base", "distill_ar"


def compare_runs(runs: list[Path]) -> str:
    """Losses of every model, right answers of dense base and student, and what ternary weights
    cost: means, deviations, extremes over runs.

    What the student loses against the dense base is taken within each run.

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
    rows += _differences("", losses)
    rows += [
        _row(f"cost of ternary weights, {LABELS.get(name, name)}", values)
        for name, values in _by_name(costs)
    ]
    tables = [plain_rows(rows)]
    if tasks := _tasks(runs):
        tables.append(plain_rows([["share of right answers", *rows[0][1:]], *tasks]))
    return "\n".join([line for table in tables for line in (*table, "")] + [_apart(runs)])


def _tasks(runs: list[Path]) -> list[list[str]]:
    """Rows of every task that a run answered."""
    found = [_shares(run) for run in runs]
    rows = []
    for task in sorted({task for of_run in found for task in of_run}):
        shares = [of_run[task] for of_run in found if task in of_run]
        for model in (BASE, STUDENT):
            if values := [share[model] for share in shares if model in share]:
                rows.append(_row(f"{task}, {LABELS[model]}", values))
        rows += _differences(f"{task}, ", shares)
    return rows


def _shares(run: Path) -> dict[str, dict[str, float]]:
    """By task and model; by the length of choices where that is asked."""
    file = run / RESULTS / "evaluation.json"
    found: dict[str, dict[str, float]] = {}
    answers = json.loads(file.read_bytes()).get("tasks", {}) if file.is_file() else {}
    for model, scores in answers.items():
        for task, score in scores.items():
            by_length = score["acc_norm"]
            found.setdefault(task, {})[model] = score["acc"] if by_length is None else by_length
    return found


def _differences(prefix: str, runs: list[dict[str, float]]) -> list[list[str]]:
    """A row of what the student has more than the dense base of its run, of the runs with both."""
    values = [run[STUDENT] - run[BASE] for run in runs if STUDENT in run and BASE in run]
    return [_row(f"{prefix}{LABELS[STUDENT]} - {LABELS[BASE]}", values)] if values else []


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
    """The settings in which the runs are apart, or those of them that have a control in its own."""
    settings = [_settings(run) for run in runs]
    names = dict.fromkeys(name for run in settings for name in run)
    apart = [
        name
        for name in names
        if len({repr(run.get(name)) for run in settings if _counts(name, run)}) > 1
    ]
    others = [name for name in apart if not name.endswith((".seed", " seed", ".seeds"))]
    if not apart:
        return "All settings of the runs are alike, seeds too."
    if not others:
        return "The runs have other seeds and are alike in all other settings."
    more = [f"and {len(others) - _NAMED} more"] if len(others) > _NAMED else []
    return "\n  ".join(["The runs are apart in", *others[:_NAMED], *more])


def _counts(name: str, settings: dict[str, Any]) -> bool:
    return name in settings or not name.startswith(CONTROL)


def _settings(run: Path) -> dict[str, Any]:
    """Settings of every artifact of a run, by the artifact's folder and their dotted name."""
    folders = [manifest.parent for room in _ROOMS for manifest in (run / room).rglob(MANIFEST)]
    return {
        f"{folder.relative_to(run)}: {name}": value
        for folder in sorted(folders)
        for name, value in flatten(read_manifest(folder).settings).items()
    }
