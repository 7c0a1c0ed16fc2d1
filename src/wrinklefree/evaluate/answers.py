"""Benchmarks answered by a model, through lm-eval's class for models (EleutherAI)."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import AutoTokenizer, PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.evaluate.task_scores import Answer, TaskScore
from wrinklefree.tasks.questions import DELIMITER
from wrinklefree.tasks.registry import PREFIX

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

    Raises
    ------
    UserError : a continuation has more tokens than the model has positions, which lm-eval refuses.
        Of a question that is longer with its context, the end is read, as there.
    """
    files = sorted(tasks.glob(f"{PREFIX}*.yaml"))
    if not files:
        return {}
    from lm_eval.models.huggingface import HFLM  # heavy and optional

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of models that are no name
    words = AutoTokenizer.from_pretrained(tokenizer)
    reader_of: Any = HFLM
    reader = reader_of(pretrained=model, tokenizer=words, batch_size=batch_size)
    found = {}
    for file in files:
        name, task = file.stem.removeprefix(PREFIX), yaml.safe_load(file.read_text("utf-8"))
        lines = (tasks / task["dataset_kwargs"]["data_files"]["test"]).read_text("utf-8")
        rows = [json.loads(line) for line in lines.splitlines()]
        asked = [(pair, *reader._encode_pair(*pair)) for row in rows for pair in _pairs(row)]
        _require_positions(name, max(len(answer) for *_, answer in asked), reader.max_length)
        most = reader.max_length + 1  # the last token is only asked
        too_long = (len(context) + len(answer) > most for _, context, answer in asked)
        cut = sum(max(next(too_long) for _ in _pairs(row)) for row in rows)
        likelihoods = iter(reader._loglikelihood_tokens(asked, disable_tqdm=True))
        by_length = "acc_norm" in [scored["metric"] for scored in task["metric_list"]]
        answers = [
            _answer(row, [next(likelihoods) for _ in _pairs(row)], by_length) for row in rows
        ]
        found[name] = score = _score(answers, cut, **task["metadata"])
        say(f"{name}: {score.acc:.1%} of {score.questions} questions")
    return found


def _pairs(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Contexts and continuations of a question as ``wrinklefree.tasks.registry`` writes it."""
    if "choices" in row:
        return [(row["context"], DELIMITER + choice) for choice in row["choices"]]
    if "contexts" in row:
        return [(context, DELIMITER + row["continuation"]) for context in row["contexts"]]
    return [(row["context"], row["continuation"])]


def _answer(row: dict[str, Any], likelihoods: list[Likelihood], by_length: bool) -> Answer:
    sums = [likelihood for likelihood, _ in likelihoods]
    if "label" not in row:
        return Answer(sums, likelihoods[0][1])
    right = int(np.argmax(sums)) == row["label"]
    if not by_length:
        return Answer(sums, right)
    lengths = [len(choice) for choice in row["choices"]]
    return Answer(sums, right, int(np.argmax(np.divide(sums, lengths))) == row["label"])


def _require_positions(task: str, longest: int, positions: int) -> None:
    if longest > positions:
        raise UserError(
            f"task {task}: an answer has {longest} tokens and the model {positions} positions, of"
            f" which lm-eval gives no likelihood; leave {task} out of tasks.names, or train on"
            " longer rows (mixture.sequence_length)"
        )


def _score(answers: list[Answer], cut: int, few_shot: int, contaminated: int) -> TaskScore:
    right = [answer.right for answer in answers]
    right_by_length = [found for answer in answers if (found := answer.right_by_length) is not None]
    by_length = _share(right_by_length) if right_by_length else (None, None)
    scores = (*_share(right), *by_length)
    return TaskScore(len(answers), few_shot, contaminated, *scores, cut=cut, answers=answers)


def _share(right: list[bool]) -> tuple[float, float | None]:
    """The share and its standard error; None where there is none."""
    error = float(np.std(right, ddof=1) / len(right) ** 0.5) if len(right) > 1 else None
    return float(np.mean(right)), error
