"""The ``search`` stage: which settings of stage 2 lead to the lowest held-out loss.

Optuna's tree-structured Parzen estimator (arXiv 2304.11127) proposes the settings of a trial from
those that ended; its median rule stops hopeless ones.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, redirect_stderr
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any, cast

import optuna
import torch
from optuna.trial import FrozenTrial, TrialState

from wrinklefree.errors import UserError
from wrinklefree.evaluate.canvas import save_svg
from wrinklefree.evaluate.columns import ABSENT, TERMINAL_WIDTH, fitted, header, plain
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.models.folder import write_json
from wrinklefree.research.hyperparameter_plots import trial_curves, tried_values
from wrinklefree.research.hyperparameter_settings import (
    SECTION,
    SearchSettings,
    counting,
    nested,
)
from wrinklefree.research.hyperparameter_trials import WHY, Trials, open_study, prepare, shown
from wrinklefree.research.measure import cpu_threads
from wrinklefree.schema.yaml_dump import dump_yaml
from wrinklefree.tracking.children import child_processes
from wrinklefree.tracking.progress import Progress
from wrinklefree.tracking.runs import StageRun
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.terminal import Terminal
from wrinklefree.train.stage2_settings import Stage2Settings

SCHEMA = 1
SHOWN = 20
"""Trials in the table."""
_SECONDS = 2.0
_ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


def search_hyperparameters(stage: Stage) -> dict[str, Any]:
    """Train every trial and write the best as a preset, into ``stage.folder``.

    Files
    -----
    ``search.json``::

        schema   1
        trials   [{trial, state: complete | pruned | stopped, why, steps, values {path: value},
                   loss: of the finished model, nats per held-out token; of one that was pruned
                   the last that was measured,
                   held_out {step: loss of the ternary model in training}}]
        best     number of the trial
        present  loss of stage 2's own settings; null where none was trained to the end with them

    ``best.yaml``, a preset; ``table.txt``, ``table.html``; ``plots/values.svg``,
    ``plots/trials.svg``.

    Raises
    ------
    UserError : no range counts, ends of ranges don't go together with the other settings, or no
        trial was trained to the end.
    """
    trials, with_present = _trained(stage)
    whole = [trial for trial in trials if trial["state"] == "complete"]
    if not whole:
        why = next((trial["why"] for trial in trials if trial["why"]), "all were pruned")
        raise UserError(f"none of {len(trials)} trials was trained to the end: {why}")
    best = min(whole, key=lambda trial: trial["loss"])
    present = trials[0]["loss"] if with_present and trials[0] in whole else None
    content = {"schema": SCHEMA, "trials": trials, "best": best["trial"], "present": present}
    _write(stage.folder, content)
    stage.terminal.say((stage.folder / "table.txt").read_text(encoding="utf-8"))
    states = [trial["state"] for trial in trials]
    return {
        "trials": {state: states.count(state) for state in ("complete", "pruned", "stopped")},
        "best": {key: best[key] for key in ("trial", "loss", "values")},
        "present": present,
    }


def _trained(stage: Stage) -> tuple[list[dict[str, Any]], bool]:
    """``trials`` of ``search.json``, and whether the first has stage 2's own settings."""
    settings: SearchSettings = stage.section("search", SearchSettings)
    own: Stage2Settings = stage.section(SECTION, Stage2Settings)
    ranges = counting(settings.ranges, own)
    if not ranges:
        raise UserError(
            f"search.ranges has {', '.join(settings.ranges)}, none of which counts: stage2 has"
            f" optimizer.name {own.optimizer.name} and teacher {own.teacher}"
        )
    with open_study(stage.work) as study:
        with_present = prepare(study, ranges, own)
        if settings.workers == 1:
            with cpu_threads(settings.threads):
                Trials(stage, study, stage.run.id).run()
        else:
            _in_processes(stage, study, settings)
        return [_record(trial) for trial in study.get_trials(deepcopy=False)], with_present


def _in_processes(stage: Stage, study: optuna.Study, settings: SearchSettings) -> None:
    """Let several processes take trials; each has a log of its own."""
    # Each has its own of what can't be sent.
    sent = replace(stage, run=cast(StageRun, None), terminal=cast(Terminal, None))
    count = min(settings.workers, settings.trials)
    try:
        with child_processes(count, torch.set_num_threads, settings.threads) as pool:
            jobs = {pool.submit(_work, sent, stage.run.id, number) for number in range(count)}
            _follow(jobs, stage.terminal.label, study, settings.trials)
    except BrokenProcessPool as error:
        raise UserError(
            "a process of the search was killed, perhaps for want of memory; lower search.workers"
            " or free some memory, and run again: trials that ended are kept"
        ) from error


def _follow(jobs: set[Future[None]], label: str, study: optuna.Study, total: int) -> None:
    """Show how many trials have ended; raise what a process has raised."""
    before = 0
    with closing(Progress(label, "trials", total)) as progress:
        while jobs:
            ended, jobs = wait(jobs, timeout=_SECONDS, return_when=FIRST_COMPLETED)
            for job in ended:
                job.result()
            count = len(study.get_trials(deepcopy=False, states=_ENDED))
            progress.advance(count - before)
            before = count


def _work(sent: Stage, parent: str, number: int) -> None:
    label = f"{sent.name}.worker_{number}"
    with (
        Path(os.devnull).open("w") as silent,
        redirect_stderr(silent),
        Terminal(label) as terminal,
    ):
        terminal.open_log()
        warnings.showwarning = terminal.show_warning
        with open_study(sent.work) as study:
            Trials(replace(sent, terminal=terminal), study, parent).run()


def _record(trial: FrozenTrial) -> dict[str, Any]:
    """An entry of ``trials`` of ``search.json``."""
    why = trial.user_attrs.get(WHY)
    held_out = {str(step): loss for step, loss in sorted(trial.intermediate_values.items())}
    return {
        "trial": trial.number,
        "state": "stopped" if why else trial.state.name.lower(),
        "why": why,
        "loss": trial.value,
        "steps": trial.last_step or 0,
        "values": dict(sorted(trial.params.items())),
        "held_out": held_out,
    }


def _write(folder: Path, content: dict[str, Any]) -> None:
    write_json(folder / "search.json", content)
    best = content["trials"][content["best"]]
    table = table_text(content)
    write_texts(
        folder,
        {
            "table.txt": table,
            "table.html": text_page("Hyperparameters", table),
            "best.yaml": f"# Trial {best['trial']} of {len(content['trials'])}: held-out loss"
            f" {best['loss']:.4f} nats per token.\n" + dump_yaml({SECTION: nested(best["values"])}),
        },
    )
    save_svg(tried_values(content), folder / "plots" / "values.svg")
    save_svg(trial_curves(content), folder / "plots" / "trials.svg")


def table_text(content: dict[str, Any]) -> str:
    """What the stage says on the terminal, from ``search.json``."""
    trials, present = content["trials"], content["present"]
    best = trials[content["best"]]

    def place(trial: dict[str, Any]) -> tuple[bool, float]:
        unknown = trial["loss"] is None
        return trial["state"] != "complete", float("inf") if unknown else trial["loss"]

    order = sorted(trials, key=place)[:SHOWN]
    losses = [ABSENT if trial["loss"] is None else f"{trial['loss']:.4f}" for trial in order]
    columns = [["loss", *losses], ["steps", *(str(trial["steps"]) for trial in order)]]
    columns.append(["", *(trial["state"] for trial in order)])
    for path in best["values"]:
        name = header(".".join(path.split(".")[-2:]))
        columns.append([name, *(shown(trial["values"][path]) for trial in order)])
    names = ["trial", *(str(trial["trial"]) for trial in order)]
    lines = [
        f"Hyperparameters of {SECTION}: trial {best['trial']} of {len(trials)} is best,"
        f" held-out loss {best['loss']:.4f}",
        "",
        "\n\n".join(fitted(names, columns, plain, TERMINAL_WIDTH)),
        "",
    ]
    about = (
        "Losses in nats per token of the finished model, or the last that was measured of one that"
        " was pruned (above the median at that step) or stopped by a check."
    )
    if present is not None:
        about += (
            f" Trial 0 has the settings of {SECTION}: the best is {present - best['loss']:.4f}"
            " lower."
        )
    about += " Each was trained once, so that small differences may be luck."
    if len(trials) > SHOWN:
        about += f" The other {len(trials) - SHOWN}, which were worse, are in search.json."
    return "\n".join([*lines, fill(about, TERMINAL_WIDTH), ""])
