"""The ``control`` stage: what ternary weights cost against a dense model that trained as long.

Against the dense base a student gains twice: it gets over being quantized, and it has trained on.
The control is the base trained on alone, on the rows and at the rates of stage 2 and then of the
distillation, without quantization and without a teacher. What is left between the two is the price.
Layers and features that ``subln.prune`` left out are left out of the control too. Rows on which
``subln.reconstruct`` trains are not given to it: what the student gains from them lowers the price.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.evaluate.columns import TERMINAL_WIDTH, header, plain_rows
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.evaluate.scores import LABELS, HeldOutScores, domain_score, overall_score
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.mixture.rows import read_mixture
from wrinklefree.models.folder import load_model, read_format, write_json
from wrinklefree.models.prune import pruned_like
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.research.intervals import SingleDifference, single_difference
from wrinklefree.research.measure import (
    measure_held_out,
    require_documents,
    target_shares,
)
from wrinklefree.research.part_of_stage import part_of
from wrinklefree.research.settings import OVERALL, ControlSettings
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.data import arrange, open_data
from wrinklefree.train.distill_settings import NextTokenDistillSettings
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.settings import TrainingSettings
from wrinklefree.train.stage2_settings import Stage2Settings

STUDENTS = ("stage2", "distill_ar")
"""The students, in the order in which one goes on from the other."""
SCHEMA = 1

Scores = dict[str, HeldOutScores]
"""By domain."""


def train_control(stage: Stage) -> dict[str, Any]:
    """Train the dense base on as the students were, and compare, into ``stage.folder``.

    Files
    -----
    ``control.json``::

        schema      1
        confidence  of the intervals
        shares      {domain: weight in the mixture}
        documents   {domain: held-out documents}
        students    {"stage2" | "distill_ar": {
                        steps, tokens   of this training
                        losses          {"overall" or domain: {dense, ternary}}, nats per token
                        differences     {"overall" or domain: {mean, low, high}}, ternary less
                                        dense}}

    ``table.txt``, ``table.html``; ``<student>/history.jsonl`` of the control, as of every training.

    Raises
    ------
    UserError : a loss is not finite, a domain has too few held-out documents, or a model is not
        of the kind that it is compared as.
    """
    settings = stage.section("control", ControlSettings)
    mixture = stage.inputs["mixture"]
    held_out = HeldOutData(mixture)
    require_documents(held_out, settings.measure)
    weights = {domain.name: domain.weight for domain in read_mixture(mixture).domains}
    shares = target_shares(None, weights)
    for name in STUDENTS:  # not after the training that they are compared with
        read_format(stage.inputs[name], "ternary")
    base, _ = load_model(stage.inputs["model"], "dense")
    model = pruned_like(base, stage.inputs["subln"]) or base
    found, documents = {}, {}
    for name in STUDENTS:
        facts = _train_on(stage, name, model)
        dense = measure_held_out(model, held_out, settings.measure)
        ternary = measure_held_out(_student(stage.inputs[name]), held_out, settings.measure)
        documents = {domain: len(scores.documents.tokens) for domain, scores in dense.items()}
        found[name] = {
            "steps": facts["steps"],
            "tokens": facts["tokens"],
            **compare(dense, ternary, shares, settings.confidence),
        }
    content = {
        "schema": SCHEMA,
        "confidence": settings.confidence,
        "shares": shares,
        "documents": documents,
        "students": found,
    }
    write_json(stage.folder / "control.json", content)
    table = table_text(content)
    write_texts(stage.folder, {"table.txt": table, "table.html": text_page("Control", table)})
    stage.terminal.say(table)
    return {name: student["differences"][OVERALL] for name, student in found.items()}


def _train_on(stage: Stage, name: str, model: PreTrainedModel) -> dict[str, Any]:
    """Train ``model`` as the student ``name`` was, but dense. Resumes from its own checkpoints."""
    part = part_of(stage, name, f"the dense model goes on as {LABELS[name]}")
    if name == "stage2":
        quantized = part.section("stage2", Stage2Settings)
        part = replace(part, name="stage2")  # whose seed gives it the same rows
    else:
        quantized = part.section("distill.ar", NextTokenDistillSettings)
        part = replace(part, name="distill", instance="ar")
    fields = TrainingSettings.model_fields
    settings = TrainingSettings(**{field: getattr(quantized, field) for field in fields})
    data, _ = arrange(part, settings, open_data(part, settings), model)
    return stage_trainer(part, model, data, settings).run()


def _student(folder: Path) -> PreTrainedModel:
    model, _ = load_model(folder)
    set_quantization_lambda(model, 1.0)
    nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    return model


def compare(
    dense: Scores, ternary: Scores, shares: dict[str, float], confidence: float
) -> dict[str, Any]:
    """``losses`` and ``differences`` of ``control.json``, from the same text under both models."""
    losses: dict[str, dict[str, float]] = {name: {} for name in (OVERALL, *dense)}
    for kind, scores in (("dense", dense), ("ternary", ternary)):
        domains = {
            name: domain_score(found, f"the {kind} model, domain {name}")
            for name, found in scores.items()
        }
        losses[OVERALL][kind] = overall_score(domains, shares).loss
        for name, domain in domains.items():
            losses[name][kind] = domain.score.loss
    nats, tokens = {}, {}
    for name in dense:
        ours, theirs = ternary[name].documents, dense[name].documents
        assert ours.tokens == theirs.tokens, "both models scored the same documents"
        nats[name] = np.subtract(ours.nats, theirs.nats)
        tokens[name] = np.array(ours.tokens)
    counted = {OVERALL: shares} | {name: {name: 1.0} for name in dense}
    differences: dict[str, SingleDifference] = {
        name: single_difference(nats, tokens, parts, confidence) for name, parts in counted.items()
    }
    return {
        "losses": losses,
        "differences": {name: vars(difference) for name, difference in differences.items()},
    }


def table_text(content: dict[str, Any]) -> str:
    """What the stage says on the terminal, from ``control.json``."""
    lines = ["Ternary models, and the dense base trained on over the same rows:", ""]
    for name, student in content["students"].items():
        interval = f"{content['confidence']:.0%} interval"
        table = [[LABELS[name], "dense", "ternary", "difference", interval]]
        for domain, difference in student["differences"].items():
            losses = student["losses"][domain]
            table.append(
                [
                    header(domain),
                    f"{losses['dense']:.3f}",
                    f"{losses['ternary']:.3f}",
                    f"{difference['mean']:+.3f}",
                    f"{difference['low']:+.3f} to {difference['high']:+.3f}",
                ]
            )
        lines += [*plain_rows(table), ""]
    counts = ", ".join(f"{name} {count}" for name, count in content["documents"].items())
    return "\n".join(
        [
            *lines,
            fill(f"Held-out loss, nats per token. Documents: {counts}.", TERMINAL_WIDTH),
            "Rows are control.measure's, so losses can differ from those of evaluate.",
            "Intervals are for the luck of held-out documents; each model was trained once.",
            "The dense base is pruned as they are. It did not see subln.reconstruct's rows.",
            "",
        ]
    )
