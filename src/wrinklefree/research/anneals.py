"""The ``microanneal_run`` stage: short anneals from one checkpoint on one mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wrinklefree.evaluate.scores import HeldOutScores, domain_score
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.mixture.rows import read_mixture
from wrinklefree.models.folder import load_model, write_json
from wrinklefree.research.measure import (
    cpu_threads,
    measure_held_out,
    require_documents,
    shared_seed,
)
from wrinklefree.research.part_of_stage import part_of
from wrinklefree.research.settings import ArmSettings, MeasureSettings
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.data import open_data
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.settings import TrainingSettings

ARM_FILE = "arm.json"
SCHEMA = 1


def anneal_arm(stage: Stage) -> dict[str, Any]:
    """Anneal the dense base once per seed on the mixture of the arm ``stage.instance``.

    Both arms go through the same seeds of the data order and the same held-out text, so that their
    differences can be taken pair by pair. The models are not kept.

    Files
    -----
    ``arm.json``::

        schema   1
        arm      "present" | "candidate"
        present  {domain: weight in the mixture artifact}
        weights  {domain: weight that this arm trained on}
        seeds    {seed: {domain: {nats, tokens, bytes: a number per held-out document}}}

    ``seed-<seed>/history.jsonl``, as of every training.

    Raises
    ------
    UserError : the base is not dense, the weights do not fit the mixture, a weight needs more
        repetitions of its domain than the mixture allows, or a domain has too little held-out text.
    """
    mixture = stage.inputs["mixture"]
    arm = stage.section(f"microanneal.arms.{stage.instance}", ArmSettings)
    present = {domain.name: domain.weight for domain in read_mixture(mixture).domains}
    weights = present if arm.weights is None else arm.weights
    held_out = HeldOutData(mixture)
    require_documents(held_out, stage.section("microanneal.measure", MeasureSettings))
    with cpu_threads(stage.settings["microanneal"]["threads"]):
        scores = {
            str(seed): _anneal(stage, held_out, weights, seed)
            for seed in stage.settings["microanneal"]["seeds"]
        }
    content = {
        "schema": SCHEMA,
        "arm": stage.instance,
        "present": present,
        "weights": weights,
        "seeds": {
            seed: {name: found.documents.as_json() for name, found in domains.items()}
            for seed, domains in scores.items()
        },
    }
    write_json(stage.folder / ARM_FILE, content)
    return {"weights": weights, "held_out_loss": _losses(stage, scores)}


def _anneal(
    stage: Stage, held_out: HeldOutData, weights: dict[str, float], seed: int
) -> dict[str, HeldOutScores]:
    """Held-out scores after one anneal. Resumes from its own checkpoints."""
    training = stage.section("microanneal.training", TrainingSettings)
    measure = stage.section("microanneal.measure", MeasureSettings)
    order = shared_seed(stage.settings["seed"], "microanneal", seed)
    data = open_data(stage, training, seed=order, weights=weights)
    model, _ = load_model(stage.inputs["model"], "dense")
    part = part_of(stage, f"seed-{seed}", f"seed {seed}")
    stage_trainer(part, model, data, training).run()
    return measure_held_out(model, held_out, measure)


def _losses(
    stage: Stage, scores: dict[str, dict[str, HeldOutScores]]
) -> dict[str, dict[str, float]]:
    """Loss of every domain, nats per token, by seed; UserError if one is not finite."""
    return {
        seed: {
            name: domain_score(
                found, f"{stage.terminal.label}, seed {seed}, domain {name}"
            ).score.loss
            for name, found in domains.items()
        }
        for seed, domains in scores.items()
    }


def read_arm(folder: Path) -> dict[str, Any]:
    """``arm.json`` of the artifact in ``folder``."""
    return json.loads((folder / ARM_FILE).read_text(encoding="utf-8"))
