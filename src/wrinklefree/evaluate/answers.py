"""Benchmarks answered by a model, through lm-eval (EleutherAI)."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer, PreTrainedModel

from wrinklefree.evaluate.task_scores import TaskScore

METRICS = ("acc", "acc_norm")


def score_tasks(
    model: PreTrainedModel, tokenizer: Path, tasks: Path, batch_size: int
) -> dict[str, TaskScore]:
    """By name, how ``model`` answers each task of a folder that stage ``tasks`` wrote.

    The answers are those of ``lm_eval --model hf`` on the model, which does the same.

    Parameters
    ----------
    tokenizer : a model folder.
    batch_size : rows at a time.
    """
    configs = [_with_file(path) for path in sorted(tasks.glob("*.yaml"))]
    if not configs:
        return {}
    import datasets  # heavy, as the next, and optional
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    datasets.disable_progress_bars()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of models that are no name
    names = {
        config["task"]: Path(config["dataset_kwargs"]["data_files"]["test"]).stem
        for config in configs
    }
    with tempfile.TemporaryDirectory() as cache:  # else its copies would stay for ever
        for config in configs:
            config["dataset_kwargs"]["cache_dir"] = cache
        found = simple_evaluate(
            model=HFLM(
                pretrained=model,
                tokenizer=AutoTokenizer.from_pretrained(tokenizer),
                batch_size=batch_size,
            ),
            tasks=configs,
            log_samples=False,
        )
    assert found is not None, "there is one process"
    numbers = found["n-samples"]
    return {
        names[name]: _score(scores, numbers[name]["effective"])
        for name, scores in sorted(found["results"].items())
    }


def _with_file(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    files = config["dataset_kwargs"]["data_files"]
    files["test"] = str(path.parent.absolute() / files["test"])
    return config


def _score(scores: dict[str, Any], questions: int) -> TaskScore:
    numbers = {}
    for metric in METRICS:
        numbers[metric] = scores.get(f"{metric},none")
        error = scores.get(f"{metric}_stderr,none")
        numbers[f"{metric}_standard_error"] = error if isinstance(error, float) else None
    return TaskScore(questions, **numbers)
