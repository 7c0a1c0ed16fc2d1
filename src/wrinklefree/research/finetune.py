"""The ``finetune`` stage: what is left of a model's worth for a task, as BitDistill asks.

Four trainings on the same labelled rows: the dense base; the ternary model that SubLN made of it;
the one after stage 2; that one again, under the dense model of the first training.
"""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from wrinklefree.distill.vocabulary import check_tokenizers
from wrinklefree.errors import UserError
from wrinklefree.evaluate.columns import TERMINAL_WIDTH, plain_rows
from wrinklefree.evaluate.page import text_page, write_texts
from wrinklefree.mixture.token_rows import TokenRows
from wrinklefree.models.folder import load_model, write_json
from wrinklefree.models.forward import require_embeddings, require_positions
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.research.finetune_settings import FinetuneSettings
from wrinklefree.research.labelled import Labelled, Task, read_labelled
from wrinklefree.research.part_of_stage import part_of
from wrinklefree.tasks.questions import spread
from wrinklefree.tokens.tokenizer import end_of_text_id, load_tokenizer
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.settings import QuantizedTrainingSettings, TrainingSettings

SCHEMA = 1
DENSE, DISTILLED = "dense", "distilled"
STARTS = {DENSE: "model", "ternary": "subln", "stage2": "stage2", DISTILLED: "stage2"}
"""By name of a training, in their order, the input that it starts from."""
LABELS = {
    DENSE: "dense",
    "ternary": "ternary, without stage 2",
    "stage2": "ternary, after stage 2",
    DISTILLED: "ternary, after stage 2, distilled",
}
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class _Work:
    """What all trainings have in common."""

    stage: Stage
    settings: FinetuneSettings
    task: Task
    rows: TokenRows
    asked: list[Labelled]


def finetune_models(stage: Stage) -> dict[str, Any]:
    """Train and ask every model, into ``stage.folder``.

    Files
    -----
    ``finetune.json``::

        schema     1
        labels     the labels
        rows       texts that were learnt from
        questions  texts that were asked
        majority   share of the most frequent label among them
        models     {name: {accuracy, standard_error, and but for the dense one
                    difference, low, high: to the dense one, of 95 %, over the same questions}}

    ``table.txt``, ``table.html``; ``<name>/history.jsonl`` of every training.

    Raises
    ------
    UserError : a file can't be read, the held-out texts have a label that is never learnt, or a
        model is of another kind or has another tokenizer.
    """
    settings = stage.section("finetune", FinetuneSettings)
    for start in ("subln", "stage2"):
        check_tokenizers(stage.inputs["model"], stage.inputs[start])
    training = read_labelled(settings.train, stage.downloads)
    held_out = read_labelled(settings.held_out, stage.downloads)
    labels = sorted({example.label for example in training})
    if unknown := sorted({example.label for example in held_out} - set(labels)):
        raise UserError(
            f"finetune.held_out has the label {unknown[0]!r}, which finetune.train has not; the"
            f" labels there are {', '.join(map(repr, labels))}"
        )
    asked = spread(held_out, settings.questions)
    if len(asked) < 2:
        raise UserError(
            f"finetune.held_out has {len(asked)} labelled text, expected 2 or more, for the"
            " accuracy over one has no error; give it more"
        )
    folder = stage.inputs["model"]
    task = Task(
        load_tokenizer(folder),
        end_of_text_id(folder),
        labels,
        settings.prompt,
        settings.sequence_length,
    )
    rows = task.rows(training, stage.seed)
    right = _all_trainings(_Work(stage, settings, task, rows, asked))
    counts = np.unique([example.label for example in asked], return_counts=True)[1]
    content = {
        "schema": SCHEMA,
        "labels": labels,
        "rows": len(training),
        "questions": len(asked),
        "majority": float(counts.max() / len(asked)),
        "models": compared(right),
    }
    write_json(stage.folder / "finetune.json", content)
    table = table_text(content)
    write_texts(stage.folder, {"table.txt": table, "table.html": text_page("Fine-tuning", table)})
    stage.terminal.say(table)
    return {"accuracy": {name: found["accuracy"] for name, found in content["models"].items()}}


def _all_trainings(work: _Work) -> dict[str, np.ndarray]:
    """By name which questions were answered rightly, bool."""
    right, teacher = {}, None
    for name in STARTS:
        model = _trained(work, name, teacher)
        if name == DENSE:
            teacher = model
        found = work.task.answers(model, [example.text for example in work.asked]).tolist()
        expected = [work.task.labels.index(example.label) for example in work.asked]
        right[name] = np.equal(found, expected)
    return right


def _trained(work: _Work, name: str, teacher: PreTrainedModel | None) -> PreTrainedModel:
    """Goes on from the part's own checkpoints."""
    stage, settings = work.stage, work.settings
    part = part_of(stage, name, LABELS[name])
    kind = "dense" if name == DENSE else "ternary"
    model, _ = load_model(stage.inputs[STARTS[name]], kind)
    data = work.rows
    require_embeddings(model, data.vocabulary_size)
    require_positions(model, data.sequence_length)
    how = TrainingSettings if name == DENSE else QuantizedTrainingSettings
    training = settings.training.of(how)
    objective = None
    if name == DISTILLED:
        assert teacher is not None, "the dense model is trained first"
        objective = distillation(NextToken(), settings.distillation, teacher)
    stage_trainer(part, model, data, training, objective).run()
    set_quantization_lambda(model, 1.0)
    nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    return model


def compared(right: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """``models`` of ``finetune.json``, from which questions each model answered rightly.

    Differences are of the same questions, so that hard ones do not count as luck.
    """
    found: dict[str, dict[str, float]] = {}
    for name, answers in right.items():
        found[name] = {"accuracy": float(answers.mean()), "standard_error": _error(answers)}
        if name != DENSE:
            difference = answers.astype(float) - right[DENSE]
            mean, half = float(difference.mean()), NORMAL_95 * _error(difference)
            found[name] |= {"difference": mean, "low": mean - half, "high": mean + half}
    return found


def _error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def table_text(content: dict[str, Any]) -> str:
    """What the stage says on the terminal, from ``finetune.json``."""
    table = [["model", "accuracy", "less than dense, 95 % interval"]]
    for name, found in content["models"].items():
        interval = "–"
        if name != DENSE:
            points = [f"{100 * found[key]:+.1f}" for key in ("difference", "low", "high")]
            interval = f"{points[0]} ({points[1]} to {points[2]})"
        share = f"{100 * found['accuracy']:.1f} ± {100 * found['standard_error']:.1f} %"
        table.append([LABELS[name], share, interval])
    about = (
        f"{content['rows']:,} texts learnt, {content['questions']:,} asked,"
        f" {len(content['labels'])} labels, the most frequent of which is {content['majority']:.1%}"
        " of them. Each model was trained once; intervals are for the luck of the questions."
    )
    return "\n".join([*plain_rows(table), "", fill(about, TERMINAL_WIDTH), ""])
