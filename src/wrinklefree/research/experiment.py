"""The ``experiment`` stage: all trainings of one experiment, one after the other."""

from __future__ import annotations

from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.models.folder import write_json
from wrinklefree.research.measure import cpu_threads
from wrinklefree.research.registry import EXPERIMENTS, Experiment
from wrinklefree.research.variants import Trials
from wrinklefree.tracking.stage import Stage

EXPERIMENT_FILE = "experiment.json"
SCHEMA = 1
BEST = 2
"""Families, beside the reference and those of claims, that are trained with every seed."""


def run_experiment(stage: Stage) -> dict[str, Any]:
    """Train every variant of the experiment ``stage.instance`` with the first seed, then finalists.

    Finalists are trained with every seed: of each family its best variant, of these the reference,
    those that a claim is about, the best two, and what they are compared with.

    Files
    -----
    ``experiment.json``::

        schema  1
        shares  {domain: weight in the mixture}
        best    {family: its variant of the lowest loss with the first seed}
        seeds   {variant: seeds that it was trained with}

    ``<variant>-seed-<seed>/`` with ``history.jsonl``, as of every training, and ``result.json``::

        schema    1
        stopped   why a check stopped the training; null where none did
        tokens    that it read
        measures  {measure of research/registry.py: number}
        domains   {domain: {nats, tokens, bytes: a number per held-out document}}

    Raises
    ------
    UserError : the experiment does not fit the mixture, or its reference was stopped.
    """
    assert stage.instance is not None
    experiment = EXPERIMENTS[stage.instance]
    trials = Trials(stage, experiment)
    first, *others = trials.settings.seeds
    with cpu_threads(trials.settings.threads):
        losses = {
            name: trials.run(name, first)["measures"].get("loss") for name in experiment.variants
        }
        best = best_of_families(experiment, losses)
        final = finalists(experiment, best, losses)
        for seed in others:
            for name in final:
                trials.run(name, seed)
    seeds = {name: [first, *(others if name in final else [])] for name in experiment.variants}
    content = {"schema": SCHEMA, "shares": trials.shares, "best": best, "seeds": seeds}
    write_json(stage.folder / EXPERIMENT_FILE, content)
    return {"finalists": final, "losses": {n: loss for n, loss in losses.items() if loss}}


def best_of_families(experiment: Experiment, losses: dict[str, float | None]) -> dict[str, str]:
    """The variant of the lowest loss of every family; the first where all were stopped (None)."""
    best: dict[str, str] = {}
    for name, loss in losses.items():
        leader = best.setdefault(experiment.family_of(name), name)
        leading = losses[leader]
        if loss is not None and (leading is None or loss < leading):
            best[experiment.family_of(name)] = name
    if losses[best[experiment.reference]] is None:
        raise UserError(
            f"every variant of {experiment.reference}, with which the others are compared, was"
            " stopped; see above why"
        )
    return best


def finalists(
    experiment: Experiment, best: dict[str, str], losses: dict[str, float | None]
) -> list[str]:
    """The variants that all seeds are for, in the order of the experiment."""
    others = [
        (loss, family)
        for family, name in best.items()
        if family != experiment.reference and (loss := losses[name]) is not None
    ]
    families = {experiment.reference, *(claim.family for claim in experiment.claims)}
    families |= {family for _, family in sorted(others)[:BEST]}
    families |= {experiment.opponent_of(best[family]) for family in families}
    chosen = {best[family] for family in families}
    return [
        name
        for name, loss in losses.items()
        if loss is not None and (experiment.every_seed or name in chosen)
    ]
