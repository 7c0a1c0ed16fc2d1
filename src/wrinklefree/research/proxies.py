"""The ``regmix_run`` stage: one small training on one drawn mixture, and its held-out losses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.errors import UserError
from wrinklefree.evaluate.scores import domain_score
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.mixture.rows import read_mixture
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import write_json
from wrinklefree.models.settings import ModelSettings
from wrinklefree.research.draw import mixture_of_run
from wrinklefree.research.measure import (
    cpu_threads,
    measure_held_out,
    require_documents,
    shared_seed,
)
from wrinklefree.research.settings import DrawSettings, MeasureSettings
from wrinklefree.stability.initial_loss import check_initial_loss
from wrinklefree.tracking.artifact import read_manifest
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.data import open_data
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.settings import TrainingSettings

RUN_FILE = "run.json"
SCHEMA = 1


@dataclass(frozen=True)
class Proxies:
    """What all small trainings used and reached. Shapes: N runs, D domains."""

    runs: list[int]
    present: dict[str, float]
    """Weights of the mixture artifact, for the names and the order of the domains too."""
    weights_ND: np.ndarray
    losses_ND: np.ndarray
    """Nats per token."""
    parameters: int
    """Parameters of one model."""
    tokens: int
    """That one model was trained on, the mean over runs."""


def train_proxy(stage: Stage) -> dict[str, Any]:
    """Train the small model of run ``stage.instance`` and write ``run.json`` into its folder.

    All runs start from the same weights and draw the rows of a domain in the same order, so that
    their losses differ by their mixtures more than by luck. The model itself is not kept.

    Files
    -----
    ``run.json``::

        schema   1
        run      int
        present  {domain: weight in the mixture artifact}
        weights  {domain: weight that this run trained on}
        domains  {domain: {loss (nats per token), perplexity, bits_per_byte,
                           loss_standard_error, rows, documents, tokens, bytes}}

    ``history.jsonl``, as of every training.

    Raises
    ------
    UserError : a weight needs more repetitions of its domain than the mixture allows, or a domain
        has too few held-out documents.
    """
    assert stage.instance is not None
    run = int(stage.instance)
    seed = stage.settings["seed"]
    mixture = stage.inputs["mixture"]
    present = {domain.name: domain.weight for domain in read_mixture(mixture).domains}
    draw = stage.section("regmix.draw", DrawSettings)
    weights = mixture_of_run(present, draw, seed=seed, run=run)
    said = ", ".join(f"{name} {weight:.3f}" for name, weight in weights.items())
    stage.terminal.say(f"{stage.terminal.label}: {said}")
    with cpu_threads(stage.settings["regmix"]["threads"]):
        facts, domains = _train(stage, mixture, weights)
    write_json(
        stage.folder / RUN_FILE,
        {
            "schema": SCHEMA,
            "run": run,
            "present": present,
            "weights": weights,
            "domains": domains,
        },
    )
    return {**facts, "held_out_loss": {name: found["loss"] for name, found in domains.items()}}


def _train(
    stage: Stage, mixture: Path, weights: dict[str, float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of the training, and the scores of each domain."""
    seed = stage.settings["seed"]
    held_out, measure = HeldOutData(mixture), stage.section("regmix.measure", MeasureSettings)
    require_documents(held_out, measure)
    training = stage.section("regmix.training", TrainingSettings)
    data = open_data(stage, training, seed=shared_seed(seed, "regmix", "order"), weights=weights)
    model = build_scratch(
        stage.section("regmix.model", ModelSettings),
        vocabulary_size=data.vocabulary_size,
        sequence_length=data.sequence_length,
        end_of_text_id=data.end_of_text_id,
        seed=shared_seed(seed, "regmix", "model"),
    )
    check = partial(check_initial_loss, vocabulary_size=data.vocabulary_size)
    trainer = stage_trainer(stage, model, data, training, check_first_loss=check)
    facts = trainer.run()
    scores = measure_held_out(model, held_out, measure)
    domains = {
        name: domain_score(found, f"{stage.terminal.label}, domain {name}").as_json()
        for name, found in scores.items()
    }
    return {"parameters": model.num_parameters(), **facts}, domains


def read_proxies(folders: dict[int, Path]) -> Proxies:
    """What the runs in ``folders`` reached, by number of the run, in that order.

    Raises
    ------
    UserError : a run was made from another mixture or settings than the first one.
    """
    manifests = {run: read_manifest(folder) for run, folder in folders.items()}
    first = next(iter(manifests))
    for run, manifest in manifests.items():
        for what in ("inputs", "settings"):
            if getattr(manifest, what) != getattr(manifests[first], what):
                raise UserError(
                    f"{folders[run]} was made with other {what} than {folders[first]}, so their"
                    " losses can't be compared; run all of regmix_run again"
                )
    contents = [
        json.loads((folder / RUN_FILE).read_text(encoding="utf-8")) for folder in folders.values()
    ]
    present = contents[0]["present"]
    return Proxies(
        runs=list(folders),
        present=present,
        weights_ND=np.array([[c["weights"][name] for name in present] for c in contents]),
        losses_ND=np.array([[c["domains"][name]["loss"] for name in present] for c in contents]),
        parameters=manifests[first].facts["parameters"],
        tokens=round(float(np.mean([m.facts["tokens"] for m in manifests.values()]))),
    )
