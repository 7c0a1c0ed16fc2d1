"""The ``experiments`` stage: what all experiments say, as tables, plots and one file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean, stdev
from textwrap import fill
from typing import Any

from wrinklefree.evaluate.canvas import save_svg
from wrinklefree.evaluate.columns import ABSENT, TERMINAL_WIDTH, header, plain_rows
from wrinklefree.evaluate.curves import points
from wrinklefree.evaluate.history import read_history
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.models.folder import write_json
from wrinklefree.research.experiment import EXPERIMENT_FILE
from wrinklefree.research.experiment_plots import Curve, claims_plot, experiment_plot
from wrinklefree.research.registry import EXPERIMENTS, MEASURES, Claim, Experiment, Measure
from wrinklefree.research.settings import ExperimentVerdictSettings
from wrinklefree.research.variants import folder_of, read_result
from wrinklefree.research.verdicts import (
    claim_verdict,
    loss_difference,
    relative_change,
    relative_loss,
    tokens_needed,
)
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.hooks import HELD_OUT

SCHEMA = 1
_HEADERS: dict[Measure, str] = {
    "loss": "loss",
    "start_loss": "start",
    "step_variance": "steps' var.",
    "within": "within",
    "between": "between",
    "spikes": "spikes",
    "unmoved": "unmoved",
    "operations": "MFLOP",
    "tokens_needed": "tokens",
    "operations_needed": "FLOP",
}


def gather_experiments(stage: Stage) -> dict[str, Any]:
    """Verdicts on every variant and every claim, into ``stage.folder``.

    Files
    -----
    ``experiments.json``::

        schema       1
        confidence   of the intervals
        experiments  {name: {
                        question, reference
                        variants  {family: variant, seeds of trainings that no check stopped,
                                   stopped: why one was, measures {name: mean, spread, seeds that
                                   these are over: those that reach the reference's last loss,
                                   where the measure is what that needs},
                                   difference {against, seeds, mean, low, high, verdict;
                                   nats per token less the one it is compared with}}
                        claims    [{family, measure, source, claimed, seeds, never: how many of
                                   these did not reach the opponent's last loss, mean, low, high,
                                   verdict}]}}

    ``table.txt``, ``table.html``, ``plots/<name>.svg``, ``plots/claims.svg``.
    """
    confidence = stage.section("experiments.verdict", ExperimentVerdictSettings).confidence
    found = {}
    for name in stage.settings["experiments"]["names"]:
        runs = _Runs(EXPERIMENTS[name], stage.inputs[f"runs.{name}"])
        found[name] = runs.verdicts(confidence)
        plot = experiment_plot(found[name], runs.curves(), confidence)
        save_svg(plot, stage.folder / "plots" / f"{name}.svg")
    claims = [claim for experiment in found.values() for claim in experiment["claims"]]
    save_svg(claims_plot(claims, confidence), stage.folder / "plots" / "claims.svg")
    content = {"schema": SCHEMA, "confidence": confidence, "experiments": found}
    write_json(stage.folder / "experiments.json", content)
    table = table_text(content)
    write_texts(stage.folder, {"table.txt": table, "table.html": text_page("Experiments", table)})
    stage.terminal.say(table)
    return {
        name: {family: v["difference"]["verdict"] for family, v in _compared(one)}
        for name, one in found.items()
    }


def _compared(experiment: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    variants = experiment["variants"].items()
    return [(family, variant) for family, variant in variants if variant["difference"]]


class _Runs:
    """The trainings of an experiment in the artifact ``folder``."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        self._experiment = experiment
        self._folder = folder
        content = json.loads((folder / EXPERIMENT_FILE).read_text(encoding="utf-8"))
        self._shares: dict[str, float] = content["shares"]
        self._best: dict[str, str] = content["best"]
        self._families = list(dict.fromkeys(map(experiment.family_of, experiment.variants)))
        self._trained: dict[str, list[int]] = content["seeds"]
        self._results = {
            name: {seed: read_result(folder, name, seed) for seed in seeds}
            for name, seeds in self._trained.items()
        }
        # What a training measured before it was stopped says nothing of one that was not.
        self._seeds = {
            name: [seed for seed, result in results.items() if result["stopped"] is None]
            for name, results in self._results.items()
        }

    def verdicts(self, confidence: float) -> dict[str, Any]:
        """``experiments.<name>`` of ``experiments.json``."""
        experiment = self._experiment
        return {
            "question": experiment.question,
            "reference": experiment.reference,
            "shown": list(experiment.shown),
            "variants": {f: self._variant(f, confidence) for f in self._families},
            "claims": [self._claim(claim, confidence) for claim in experiment.claims],
        }

    def curves(self) -> dict[str, list[Curve]]:
        """Held-out curves of every seed, of the variants that all seeds were for."""
        most = max(map(len, self._trained.values()))
        return {
            family: [self._curve(name, seed) for seed in self._seeds[name]]
            for family in self._families
            if len(self._trained[name := self._best[family]]) == most
        }

    def _variant(self, family: str, confidence: float) -> dict[str, Any]:
        name = self._best[family]
        results = self._results[name].values()
        measures = {}
        for measure in MEASURES:
            values = [
                value
                for seed in self._seeds[name]
                if (value := self._value(name, seed, measure)) is not None and value < math.inf
            ]
            if values:
                spread = stdev(values) if len(values) > 1 else None
                measures[measure] = {"mean": mean(values), "spread": spread, "seeds": len(values)}
        stopped = [result["stopped"] for result in results if result["stopped"]]
        return {
            "variant": name,
            "seeds": self._seeds[name],
            "stopped": stopped[0] if stopped else None,
            "measures": measures,
            "difference": self._difference(family, name, confidence),
        }

    def _difference(self, family: str, name: str, confidence: float) -> dict[str, Any] | None:
        against = self._experiment.opponent_of(name)
        opponent = self._best[against]
        seeds = self._both(name, opponent)
        if family == against or not seeds:
            return None
        ours, theirs = ([self._results[n][s] for s in seeds] for n in (name, opponent))
        found = loss_difference(ours, theirs, self._shares, confidence)
        return {"against": against, "seeds": len(seeds), **found}

    def _claim(self, claim: Claim, confidence: float) -> dict[str, Any]:
        name = self._best[claim.family]
        opponent = self._best[self._experiment.opponent_of(name)]
        seeds = self._both(name, opponent)
        pairs = [
            (ours, theirs)
            for seed in seeds
            if (ours := self._value(name, seed, claim.measure)) is not None
            and (theirs := self._value(opponent, seed, claim.measure)) is not None
        ]
        said = {"family": claim.family, "measure": claim.measure, "source": claim.source}
        never = [ours for ours, _ in pairs].count(math.inf)
        said |= {"claimed": claim.change, "seeds": len(pairs), "never": never}
        if len(pairs) < 2 or never:  # more than all tokens, and nobody knows how many
            verdict = "refuted" if 1 < len(pairs) == never else "undecided"
            return {**said, "mean": None, "low": None, "high": None, "verdict": verdict}
        if claim.measure == "loss":
            ours, theirs = ([self._results[n][s] for s in seeds] for n in (name, opponent))
            change = relative_loss(ours, theirs, self._shares, confidence)
        else:
            ours, theirs = zip(*pairs, strict=True)
            change = relative_change(ours, theirs, confidence)
        return {**said, **vars(change), "verdict": claim_verdict(change, claim.change)}

    def _both(self, name: str, opponent: str) -> list[int]:
        return [seed for seed in self._seeds[name] if seed in self._seeds[opponent]]

    def _value(self, name: str, seed: int, measure: Measure) -> float | None:
        """None if it was not measured, infinity if no number of tokens was enough."""
        measures = self._results[name][seed]["measures"]
        if measure not in ("tokens_needed", "operations_needed"):
            return measures.get(measure)
        opponent = self._best[self._experiment.opponent_of(name)]
        if seed not in self._seeds[opponent]:
            return None
        tokens = tokens_needed(self._curve(name, seed), self._curve(opponent, seed))
        if measure == "tokens_needed":
            return tokens
        theirs = self._results[opponent][seed]["measures"]["operations"]
        return tokens * measures["operations"] / theirs

    def _curve(self, name: str, seed: int) -> Curve:
        history = read_history(self._folder / folder_of(name, seed))
        return list(zip(*points(history, HELD_OUT), strict=True))


def table_text(content: dict[str, Any]) -> str:
    """What the stage says on the terminal, from ``experiments.json``."""
    confidence = f"{content['confidence']:.0%}"
    lines = []
    for name, experiment in content["experiments"].items():
        lines += [fill(f"{name}: {experiment['question']}", TERMINAL_WIDTH), ""]
        lines += [*plain_rows(_losses_table(experiment)), ""]
        if pairs := _pairs_line(experiment):
            lines += [fill(pairs, TERMINAL_WIDTH, break_on_hyphens=False), ""]
        if experiment["shown"]:
            lines += [*plain_rows(_measures_table(experiment)), ""]
        if experiment["claims"]:
            lines += [*plain_rows(_claims_table(experiment["claims"])), ""]
        for family, variant in experiment["variants"].items():
            if variant["stopped"]:
                why = variant["stopped"].splitlines()[0]
                lines += [fill(f"{family} was stopped: {why}", TERMINAL_WIDTH), ""]
    legend = (
        "Losses in nats per held-out token, ± standard deviation over seeds; differences to the"
        f" reference with {confidence} intervals. Of one seed an interval is for the luck of"
        " held-out documents alone. Each interval speaks for itself: among many variants one is"
        " off now and then. Intervals of claims are over seeds, those about the loss over held-out"
        " documents too. Means are over seeds; (2/3): over the 2 of 3 that reached the"
        " reference's last loss."
    )
    shown = {measure for one in content["experiments"].values() for measure in one["shown"]}
    names = "; ".join(
        f"{short}: {MEASURES[name]}" for name, short in _HEADERS.items() if name in shown
    )
    return "\n".join([*lines, fill(legend, TERMINAL_WIDTH), fill(names + ".", TERMINAL_WIDTH), ""])


def _losses_table(experiment: dict[str, Any]) -> list[list[str]]:
    table = [["", "seeds", "loss", "difference", "verdict"]]
    for family, variant in experiment["variants"].items():
        loss = variant["measures"].get("loss")
        difference = variant["difference"]
        row = [header(variant["variant"]), str(len(variant["seeds"]))]
        row.append(_with_spread(loss) if loss else "stopped")
        if difference:
            reach = (difference["high"] - difference["low"]) / 2
            star = "*" if difference["against"] != experiment["reference"] else " "
            row += [f"{difference['mean']:+.4f} ± {reach:.4f}{star}", difference["verdict"]]
        else:
            row += ["", "reference" if family == experiment["reference"] else ""]
        table.append(row)
    return table


def _pairs_line(experiment: dict[str, Any]) -> str:
    """Who is compared with whom, where that is not the reference."""
    pairs = [
        f"{family} less {difference['against']}"
        for family, variant in experiment["variants"].items()
        if (difference := variant["difference"])
        and difference["against"] != experiment["reference"]
    ]
    return f"* {', '.join(pairs)}" if pairs else ""


def _measures_table(experiment: dict[str, Any]) -> list[list[str]]:
    table = [["", *(_HEADERS[measure] for measure in experiment["shown"])]]
    for variant in experiment["variants"].values():
        row = [header(variant["variant"])]
        for measure in experiment["shown"]:
            found, seeds = variant["measures"].get(measure), len(variant["seeds"])
            some = f" ({found['seeds']}/{seeds})" if found and found["seeds"] < seeds else ""
            row.append(_number(found["mean"]) + some if found else ABSENT)
        table.append(row)
    return table


def _claims_table(claims: list[dict[str, Any]]) -> list[list[str]]:
    table = [["claim", "of", "seeds", "claimed", "measured", "interval", "verdict"]]
    for claim in claims:
        measured = f"never in {claim['never']}" if claim["never"] else ABSENT
        interval = ABSENT
        if claim["mean"] is not None:
            measured = _percent(claim["mean"])
            interval = f"{_percent(claim['low'])} to {_percent(claim['high'])}"
        table.append(
            [
                claim["family"],
                _HEADERS[claim["measure"]],
                str(claim["seeds"]),
                _percent(claim["claimed"]),
                measured,
                interval,
                claim["verdict"],
            ]
        )
    return table


def _with_spread(loss: dict[str, float | None]) -> str:
    assert loss["mean"] is not None
    if loss["spread"] is None:
        return f"{loss['mean']:.3f}"
    return f"{loss['mean']:.3f} ± {loss['spread']:.3f}"


def _percent(change: float) -> str:
    return f"{change:+.1%}" if abs(change) < 0.1 else f"{change:+.0%}"


def _number(value: float) -> str:
    if value and abs(value) < 0.0995:
        return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
