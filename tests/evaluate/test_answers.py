from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from wrinklefree.errors import UserError
from wrinklefree.evaluate.answers import score_tasks
from wrinklefree.evaluate.task_scores import Answer, TaskScore, answers_jsonl, task_columns
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.tasks.questions import Question
from wrinklefree.tasks.registry import row_of, task_config
from wrinklefree.tasks.settings import TaskName
from wrinklefree.tokens.tokenizer import load_tokenizer

CHOICES = ["the city", "a river of the country", "people", "to be", "in 1990, 5 of them", "no"]
ASKED = [[[*CHOICES, "a"][i - k] for k in (1, 2, 3)] for i in range(7)]
QUESTIONS: dict[TaskName, list[Question]] = {
    "arc_easy": [
        Question([f"Question: What is {i}?\nAnswer:"] * 3, [f" {one}" for one in asked], i % 3)
        for i, asked in enumerate(ASKED)
    ],
    "boolq": [Question([f"Is it {text}?"] * 2, [" yes", " no"], 1) for text in CHOICES],
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
        config = task_config(name, questions[0], f"{name}.jsonl", few_shot=0, contaminated=2)
        (tmp_path / f"offline_{name}.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.parametrize("folder", ["tokenizer_folder", "beginning_folder"])
def test_answers_are_those_of_the_sums_of_log_probabilities(
    tiny_llama, folder: str, request: pytest.FixtureRequest, tasks: Path
) -> None:
    model = tiny_llama(5)
    insert_subln(model)
    insert_bitlinear(model)
    tokenizer: Path = request.getfixturevalue(folder)
    encode = load_tokenizer(tokenizer).encode

    def likelihood(context: str, continuation: str) -> tuple[float, bool]:
        before, ids = encode(context).ids, encode(context + continuation).ids
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
            lengths = [len(text) - 1 if by_length else 1 for text in question.continuations]
            scores = [sum_ / length for (sum_, _), length in zip(found, lengths, strict=True)]
            right += scores.index(max(scores)) == question.label
        return right / len(QUESTIONS[name])

    found = score_tasks(model, tokenizer, tasks, batch_size=4)
    assert set(found) == set(QUESTIONS)
    for name, questions in QUESTIONS.items():
        assert found[name].questions == len(questions)
        assert found[name].acc == pytest.approx(share(name))
    arc = found["arc_easy"]
    assert arc.acc_norm == pytest.approx(share("arc_easy", by_length=True))
    assert found["winogrande"].acc_norm is found["boolq"].acc_norm is None
    spread = arc.acc * (1 - arc.acc) / (arc.questions - 1)
    assert arc.acc_standard_error == pytest.approx(spread**0.5)
    assert (arc.few_shot, arc.contaminated) == (0, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside of lm-eval
def test_each_answer_is_lm_evals_of_our_files_and_of_its_own_definition_of_the_task(
    tiny_llama, tokenizer_folder: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model, own = tiny_llama(5), tasks / "own.json"
    ours = score_tasks(model, tokenizer_folder, tasks, batch_size=4)
    lines = [
        {
            "question": question.contexts[0].removeprefix("Question: ").removesuffix("\nAnswer:"),
            "choices": {"text": choices, "label": ["A", "B", "C"]},
            "answerKey": "ABC"[question.label],
        }
        for question, choices in zip(QUESTIONS["arc_easy"], ASKED, strict=True)
    ]
    own.write_text("\n".join(map(json.dumps, lines)))
    arc = Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_easy.yaml"
    elsewhere: dict[str, Any] = {"dataset_path": "json", "dataset_name": None}
    elsewhere |= {"training_split": None, "validation_split": None}
    elsewhere["dataset_kwargs"] = {"data_files": {"test": own.name}}
    configs = [yaml.safe_load(file.read_text()) for file in tasks.glob("*.yaml")]
    configs.append(yaml.safe_load(arc.read_text()) | elsewhere)
    monkeypatch.chdir(tasks)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tasks / "cache")
    reader_of: Any = HFLM
    reader = reader_of(
        pretrained=model, tokenizer=AutoTokenizer.from_pretrained(tokenizer_folder), batch_size=1
    )
    theirs: Any = simple_evaluate(model=reader, tasks=configs, bootstrap_iters=0)
    assert set(theirs["samples"]) == {"arc_easy", *(f"offline_{name}" for name in QUESTIONS)}
    for name, samples in theirs["samples"].items():
        answers = ours[name.removeprefix("offline_")].answers
        for answer, sample in zip(answers, samples, strict=True):
            sums = [likelihood for likelihood, _ in sample["filtered_resps"]]
            assert answer.log_likelihoods == pytest.approx(sums, rel=1e-4)
            assert (answer.right, answer.right_by_length) == (sample["acc"], sample.get("acc_norm"))
    sums_QC = [answer.log_likelihoods for answer in ours["arc_easy"].answers]
    lengths_QC = [[len(choice) for choice in choices] for choices in ASKED]
    chosen_Q, with_blank_Q = (
        np.argmax(np.divide(sums_QC, np.add(lengths_QC, blank)), axis=1) for blank in (0, 1)
    )
    assert (chosen_Q != with_blank_Q).any(), "the blank before a choice decides nowhere"


def test_of_a_question_longer_than_the_positions_the_end_is_read(
    tiny_llama, tokenizer_folder: Path, tasks: Path
) -> None:
    def score(positions: int, beginning: str = "") -> TaskScore:
        question = Question([f"{beginning}It is"] * 2, [" the city", " a river of"], 1)
        asked = question, Question(["a"] * 2, [" a"] * 2, 1)
        rows = "\n".join(json.dumps(row_of(one)) for one in asked)
        (tasks / "boolq.jsonl").write_text(rows)
        model = tiny_llama(5)
        model.config.max_position_embeddings = positions
        return score_tasks(model, tokenizer_folder, tasks, batch_size=4)["boolq"]

    for name in QUESTIONS:
        if name != "boolq":
            (tasks / f"offline_{name}.yaml").unlink()
    encode = load_tokenizer(tokenizer_folder).encode
    end, longest = (encode(text, add_special_tokens=False).ids for text in ("It is", " a river of"))
    positions = len(end) + len(longest) - 1  # the last token is not read
    assert score(64, "no " * 9).cut == score(positions).cut == 0
    plain, cut = score(64), score(positions, "no " * 9)
    assert cut.cut == 1
    assert cut.answers[0].log_likelihoods[1] == pytest.approx(
        plain.answers[0].log_likelihoods[1], rel=1e-4
    )
    said = rf"task boolq: an answer has {len(longest)} tokens and .* tasks.names, or .*sequence_le"
    with pytest.raises(UserError, match=said):
        score(len(longest) - 1)


def test_answers_are_lines_by_model_task_and_question() -> None:
    answers = [Answer([-1.5, -0.5], True, False), Answer([-2.0], False)]
    lines = answers_jsonl({"base": {"sciq": TaskScore(2, 0, 0, 0.5, 0.5, answers=answers)}})
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"model": "base", "task": "sciq", "question": number, **vars(answer)}
        for number, answer in enumerate(answers)
    ]


def test_no_tasks_are_no_answers(tiny_llama, tokenizer_folder: Path, tmp_path: Path) -> None:
    assert score_tasks(tiny_llama(5), tokenizer_folder, tmp_path, batch_size=4) == {}


def test_the_table_has_shares_by_length_where_there_are_any() -> None:
    scores = {
        "base": {
            "sciq": TaskScore(10, 5, 3, 0.25, 0.1, 0.5, 0.125),
            "lambada": TaskScore(1, 0, 0, 1.0, None, cut=1),
        },
        "stage2": {"sciq": TaskScore(10, 5, 3, 0.25, 0.1)},
    }
    assert task_columns(scores) == [
        ["lambada", "100.0", "–", "0", "0 of 1", "1 of 1"],
        ["sciq", "50.0 ± 12.5", "25.0 ± 10.0", "5", "3 of 10", "0 of 10"],
    ]
