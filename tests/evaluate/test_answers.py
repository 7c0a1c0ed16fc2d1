from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from wrinklefree.evaluate.answers import score_tasks
from wrinklefree.evaluate.task_scores import TaskScore, task_columns
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.tasks.questions import Question
from wrinklefree.tasks.registry import row_of, task_config
from wrinklefree.tasks.settings import TaskName
from wrinklefree.tokens.tokenizer import load_tokenizer

CHOICES = ["the city", "a river of the country", "people", "to be", "in 1990, 5 of them", "no"]
QUESTIONS: dict[TaskName, list[Question]] = {
    "sciq": [
        Question([f"The {CHOICES[i]} and"] * 3, [f" {CHOICES[i - k]}" for k in (1, 2, 3)], i % 3)
        for i in range(6)
    ],
    "winogrande": [
        Question([f"It is {CHOICES[i]}", f"It is {CHOICES[i - 1]}"], [" of the"] * 2, i % 2)
        for i in range(5)
    ],
    "lambada": [Question([text], [" a"], 0) for text in CHOICES],
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name, questions in QUESTIONS.items():
        rows = "".join(json.dumps(row_of(question)) + "\n" for question in questions)
        (tmp_path / f"{name}.jsonl").write_text(rows)
        config = task_config(name, questions[0], f"{name}.jsonl")
        (tmp_path / f"offline_{name}.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_answers_are_those_of_the_sums_of_log_probabilities(
    tiny_llama, tokenizer_folder: Path, tasks: Path
) -> None:
    model = tiny_llama(5)
    insert_subln(model)
    insert_bitlinear(model)
    encode = load_tokenizer(tokenizer_folder).encode

    def likelihood(context: str, continuation: str) -> tuple[float, bool]:
        before = encode(context, add_special_tokens=False).ids
        ids = encode(context + continuation, add_special_tokens=False).ids
        logits_TV = model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
        asked = range(len(before), len(ids))
        greedy = all(int(logits_TV[at - 1].argmax()) == ids[at] for at in asked)
        return sum(logits_TV[at - 1, ids[at]].item() for at in asked), greedy

    def share(name: TaskName, *, by_length: bool = False) -> float:
        right = 0
        for question in QUESTIONS[name]:
            pairs = zip(question.contexts, question.continuations, strict=True)
            found = [likelihood(*pair) for pair in pairs]
            if len(found) == 1:
                right += found[0][1]
                continue
            lengths = [len(text.encode()) if by_length else 1 for text in question.continuations]
            scores = [sum_ / length for (sum_, _), length in zip(found, lengths, strict=True)]
            right += scores.index(max(scores)) == question.label
        return right / len(QUESTIONS[name])

    found = score_tasks(model, tokenizer_folder, tasks, batch_size=4)
    assert set(found) == set(QUESTIONS)
    for name, questions in QUESTIONS.items():
        assert found[name].questions == len(questions)
        assert found[name].acc == pytest.approx(share(name))
    assert found["sciq"].acc_norm == pytest.approx(share("sciq", by_length=True))
    assert found["winogrande"].acc_norm is None
    spread = found["sciq"].acc * (1 - found["sciq"].acc) / (len(QUESTIONS["sciq"]) - 1)
    assert found["sciq"].acc_standard_error == pytest.approx(spread**0.5)


def test_no_tasks_are_no_answers(tiny_llama, tokenizer_folder: Path, tmp_path: Path) -> None:
    assert score_tasks(tiny_llama(5), tokenizer_folder, tmp_path, batch_size=4) == {}


def test_the_table_has_shares_by_length_where_there_are_any() -> None:
    scores = {
        "base": {"sciq": TaskScore(10, 0.25, 0.1, 0.5, 0.125), "lambada": TaskScore(1, 1.0, None)},
        "stage2": {"sciq": TaskScore(10, 0.25, 0.1)},
    }
    assert task_columns(scores) == [
        ["lambada", "100.0", "–"],
        ["sciq", "50.0 ± 12.5", "25.0 ± 10.0"],
    ]
