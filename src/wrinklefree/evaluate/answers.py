"""Benchmarks answered by a model, through lm-eval's class for models (EleutherAI)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedModel

from wrinklefree.evaluate.task_scores import TaskScore

Likelihood = tuple[float, bool]
"""Of a continuation: log-likelihood, and whether greedy decoding gives it."""


def score_tasks(
    model: PreTrainedModel,
    tokenizer: Path,
    tasks: Path,
    batch_size: int,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, TaskScore]:
    """By name, how ``model`` answers each task of a folder that stage ``tasks`` wrote.

    Scores are those that ``lm_eval --model hf`` gives with the folder's own task files.

    Parameters
    ----------
    tokenizer : a model folder.
    batch_size : rows at a time.
    say : is told a line for every task that is done.
    """
    files = sorted(tasks.glob("*.jsonl"))
    if not files:
        return {}
    from lm_eval.api.instance import Instance  # heavy, as the next, and optional
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of models that are no name
    words = AutoTokenizer.from_pretrained(tokenizer)
    reader_of: Any = HFLM
    reader = reader_of(pretrained=model, tokenizer=words, batch_size=batch_size)
    found = {}
    for file in files:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        asked = [pair for row in rows for pair in _pairs(row)]
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index)
            for index, pair in enumerate(asked)
        ]
        answers = iter(reader.loglikelihood(requests, disable_tqdm=True))
        score = _score(rows, [[next(answers) for _ in _pairs(row)] for row in rows])
        found[file.stem] = score
        say(f"{file.stem}: {score.acc:.1%} of {score.questions} questions")
    return found


def _pairs(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Contexts and continuations of a question as ``wrinklefree.tasks.registry`` writes it."""
    if "choices" in row:
        return [(row["context"], choice) for choice in row["choices"]]
    contexts = row["contexts"] if "contexts" in row else [row["context"]]
    return [(context, row["continuation"]) for context in contexts]


def _score(rows: list[dict[str, Any]], answers: list[list[Likelihood]]) -> TaskScore:
    right, right_by_length = [], []
    for row, likelihoods in zip(rows, answers, strict=True):
        if "label" not in row:
            right.append(likelihoods[0][1])
            continue
        sums = [likelihood for likelihood, _ in likelihoods]
        right.append(int(np.argmax(sums)) == row["label"])
        if "choices" in row:
            lengths = [len(choice) for choice in row["choices"]]
            right_by_length.append(int(np.argmax(np.divide(sums, lengths))) == row["label"])
    by_length = _share(right_by_length) if right_by_length else (None, None)
    return TaskScore(len(rows), *_share(right), *by_length)


def _share(right: list[bool]) -> tuple[float, float | None]:
    """The share and its standard error; None where there is none."""
    error = float(np.std(right, ddof=1) / len(right) ** 0.5) if len(right) > 1 else None
    return float(np.mean(right)), error
