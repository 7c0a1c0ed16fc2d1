from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import LabelledBatch
from wrinklefree.models.dense import build_scratch
from wrinklefree.models.folder import save_model
from wrinklefree.models.settings import ModelSettings
from wrinklefree.models.transforms import ModelFormat, ternary
from wrinklefree.research.finetune import compared, finetune_models, table_text
from wrinklefree.research.finetune_settings import FinetuneSettings, LabelledFile
from wrinklefree.research.labelled import Labelled, Task, read_labelled
from wrinklefree.tokens.tokenizer import end_of_text_id, load_tokenizer
from wrinklefree.tracking.files import sha256_of_file
from wrinklefree.tracking.stage import Stage
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective, TrainStep

LABELS = ["a", "bcd", "bce"]
LENGTH = 24


@pytest.fixture
def task(tokenizer: Path) -> Task:
    end = end_of_text_id(tokenizer)
    return Task(load_tokenizer(tokenizer), end, LABELS, "\nLabel:", LENGTH)


def written(path: Path, content: str, **fields: Any) -> LabelledFile:
    path.write_text(content)
    return LabelledFile(path=str(path), sha256=sha256_of_file(path), **fields)


def test_both_formats_give_texts_and_labels(tmp_path: Path) -> None:
    lines = '{"text": "one \\"two\\"", "label": "x"}\n{"label": "y", "text": "three"}\n'
    table = 'Category\tText\nd\tstring\nclass\t\nx\tone "two"\ny\tthree\n'
    files = [
        written(tmp_path / "a.jsonl", lines),
        written(tmp_path / "a.tab", table, text="Text", label="Category", skip_lines=2),
    ]
    for file in files:
        assert read_labelled(file, tmp_path) == [Labelled('one "two"', "x"), Labelled("three", "y")]


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "one{mark}two", "label": "x"}}\r\n' for mark in "\u2028\u0085")
    found = read_labelled(written(tmp_path / "a.jsonl", lines), tmp_path)
    assert [one.text for one in found] == ["one\u2028two", "one\u0085two"]


def test_a_file_of_a_package_is_read_from_its_wheel(
    make_wheel: Callable[..., tuple[Path, str]], tmp_path: Path
) -> None:
    _, sha256 = make_wheel({"demo/a.tsv": b"text\tlabel\none\tx\n"})
    where: dict[str, Any] = {"package": "demo_text", "version": "1.0", "sha256": sha256}
    found = read_labelled(LabelledFile(path="demo/a.tsv", **where), tmp_path / "cache")
    assert found == [Labelled("one", "x")]
    with pytest.raises(UserError, match="has no file demo/b.tsv"):
        read_labelled(LabelledFile(path="demo/b.tsv", **where), tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}', r"line 1: expected text under 'label', found None"),
        ("a.jsonl", '{"text": "one", "label": 3}', "expected text under 'label', found 3"),
        ("a.jsonl", '{"text": " ", "label": "x"}', "expected text under 'text'"),
        ("a.jsonl", "[1]", "line 1: expected an object"),
        ("a.jsonl", '{"text": "one", "label": "x"}\n{', "line 2: no JSON"),
        ("a.jsonl", "", "no lines"),
        ("a.tab", "text\tname\none\tx\n", "its fields are 'text', 'name'"),
        ("a.tab", "text\tlabel\none\n", "found None"),
    ],
)
def test_what_is_no_labelled_text_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_labelled(written(tmp_path / name, content), tmp_path)


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", "{}")
    (tmp_path / "a.jsonl").write_text("{} ")
    with pytest.raises(UserError, match="its sha256 is"):
        read_labelled(file, tmp_path)


def test_a_package_needs_a_version_and_a_file_a_known_format(tmp_path: Path) -> None:
    for fields in ({"path": "a.tab", "package": "demo"}, {"path": "a.csv"}):
        with pytest.raises(ValidationError, match=r"go together|expected a file that ends"):
            LabelledFile(sha256="0" * 64, **fields)  # pyright: ignore[reportArgumentType]


def test_only_labels_are_learnt_and_the_loss_is_theirs(task: Task, shape: ModelSettings) -> None:
    examples = [Labelled("0123456789" * 5, "bcd"), Labelled("7", "a")]
    batch = task.rows(examples, seed=1).batch(0, 0, batch_size=2, micro_batches=1)
    assert isinstance(batch, LabelledBatch)
    model = build_scratch(shape, 300, LENGTH, 0, seed=3)
    objective = Objective(NextToken())
    prepared = objective.corruption.prepare(batch, 0)
    outputs = TrainStep(model, objective)(prepared)
    denominator = objective.corruption.denominator(prepared)
    found = objective.loss(outputs, prepared, denominator).loss
    total, count = torch.tensor(0.0), 0
    for example in examples:
        question, label = task.question_ids(example.text), task.label_ids(example.label)
        assert len(question) + max(len(task.label_ids(one)) for one in LABELS) <= LENGTH
        logits = model(torch.tensor([question + label])).logits[0, len(question) - 1 : -1]
        total = total + functional.cross_entropy(logits, torch.tensor(label), reduction="sum")
        count += len(label)
    assert denominator == count == int(batch.label_BT.sum())
    torch.testing.assert_close(found, total / count)
    # What looks at all clean tokens gives a row the weight of its label.
    question = objective.corruption.question(prepared)
    torch.testing.assert_close(question.clean_weight_BT.sum(1), batch.label_BT.sum(1).float())


def test_the_likeliest_label_is_that_of_whole_sequences(task: Task, shape: ModelSettings) -> None:
    model = build_scratch(shape, 300, LENGTH, 0, seed=3).double().eval()
    for parameter in model.parameters():
        parameter.data.normal_()  # so that answers depend on texts
    task = replace(task, labels=["a", "z", "?", "bcd"])
    texts = [chr(ord("a") + number) * 9 for number in range(20)]
    expected = []
    for text in texts:
        sums = []
        for label in task.labels:
            question, ids = task.question_ids(text), task.label_ids(label)
            logits = model(torch.tensor([question + ids])).logits[0, len(question) - 1 : -1]
            sums.append(logits.log_softmax(-1)[range(len(ids)), ids].sum().item())
        expected.append(int(np.argmax(sums)))
    assert len(set(expected)) > 1
    assert task.answers(model, texts).tolist() == expected


def test_a_question_begins_as_a_text_does_and_its_label_does_not(
    tokenizer: Path, begin_texts: Callable[[Path, str], int], tmp_path: Path, task: Task
) -> None:
    shutil.copytree(tokenizer, tmp_path / "tokenizer")
    first = begin_texts(tmp_path / "tokenizer", "<|endoftext|>")
    beginning = replace(task, tokenizer=load_tokenizer(tmp_path / "tokenizer"))
    assert beginning.question_ids("ab") == [first, *task.question_ids("ab")]
    assert beginning.label_ids("a") == task.label_ids("a")
    assert len(beginning.question_ids("x" * 99)) == len(task.question_ids("x" * 99))


def test_a_row_without_room_for_text_is_refused(task: Task) -> None:
    short = Task(task.tokenizer, 0, LABELS, "x" * LENGTH, LENGTH)
    with pytest.raises(UserError, match="has no room for a text"):
        short.question_ids("text")


def test_differences_are_of_the_same_questions() -> None:
    dense = np.array([True] * 80 + [False] * 20)
    luck = np.array([True] * 70 + [False] * 10 + [False] * 20)
    found = compared({"dense": dense, "stage2": luck})
    assert found["dense"]["accuracy"] == 0.8 and "difference" not in found["dense"]
    assert found["stage2"]["difference"] == pytest.approx(-0.1)
    # Of paired answers: ten questions of a hundred turned, and no other way.
    assert found["stage2"]["high"] == pytest.approx(-0.1 + 1.959964 * np.sqrt(0.09 / 99))


@pytest.fixture
def inputs(
    tokenizer: Path, shape: ModelSettings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    root, folders = tmp_path_factory.mktemp("models"), {}
    for name in ("model", "subln", "stage2"):
        model = build_scratch(shape, 300, 64, 0, seed=3)
        model_format = ModelFormat() if name == "model" else ternary()
        model_format.apply(model)
        folders[name] = root / name
        save_model(folders[name], model, model_format, tokenizer)
    return folders


def test_models_learn_what_a_text_shows_and_only_one_is_taught(
    make_stage: Callable[..., Stage], inputs: dict[str, Path], tmp_path: Path
) -> None:
    pairs = [{"text": f"{n}" + "xy"[n % 2] * 3, "label": ["off", "on"][n % 2]} for n in range(40)]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    file = written(tmp_path / "pairs.jsonl", lines).model_dump()
    changes = {"finetune.train": file, "finetune.held_out": file}
    stage = make_stage("finetune", None, inputs, changes)
    finetune_models(stage)
    content = json.loads((stage.folder / "finetune.json").read_text())
    assert content["labels"] == ["off", "on"]
    assert content["majority"] == pytest.approx(2 / 3)  # every fourth text is not asked
    assert (content["rows"], content["questions"]) == (40, 30)
    assert content["models"]["dense"]["accuracy"] > 0.9
    assert content["models"]["distilled"]["accuracy"] > 0.9
    history = {
        name: (stage.folder / name / "history.jsonl").read_text() for name in content["models"]
    }
    assert [name for name, lines in history.items() if "distill/logits" in lines] == ["distilled"]
    assert [name for name, lines in history.items() if "train/lambda" not in lines] == ["dense"]
    assert max(map(len, table_text(content).splitlines())) <= 80


def test_a_label_that_is_never_learnt_is_refused(
    make_stage: Callable[..., Stage], inputs: dict[str, Path], tmp_path: Path
) -> None:
    train = written(tmp_path / "a.jsonl", '{"text": "one", "label": "x"}').model_dump()
    asked = written(tmp_path / "b.jsonl", '{"text": "one", "label": "y"}').model_dump()
    changes = {"finetune.train": train, "finetune.held_out": asked}
    with pytest.raises(UserError, match="has the label 'y', which finetune.train has not"):
        finetune_models(make_stage("finetune", None, inputs, changes))


def test_a_single_question_has_no_error_and_is_refused(
    make_stage: Callable[..., Stage], inputs: dict[str, Path], tmp_path: Path
) -> None:
    one = written(tmp_path / "a.jsonl", '{"text": "one", "label": "x"}').model_dump()
    changes = {"finetune.train": one, "finetune.held_out": one}
    with pytest.raises(UserError, match="held_out has 1 labelled text, expected 2 or more"):
        finetune_models(make_stage("finetune", None, inputs, changes))


def test_what_has_no_effect_on_the_dense_model_s_teaching_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", "{}").model_dump()
    training = {
        "steps": 2,
        "batch_size": 1,
        "optimizer": {"name": "adamw"},
        "schedule": {"warmup_steps": 0},
    }
    given = {"train": file, "held_out": file, "training": training}
    taught = {"cached_logits": 8, "weights": {"relations": 0.0}}
    with pytest.raises(ValidationError, match="cached_logits is for rows of the mixture"):
        FinetuneSettings.model_validate(given | {"distillation": taught})
    with pytest.raises(ValidationError, match="universal is for teachers with other tokenizers"):
        FinetuneSettings.model_validate(
            given | {"distillation": {"universal": True, "weights": {"relations": 0.0}}}
        )
