from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.text.clean.repeats import (
    Answers,
    Recorder,
    Seen,
    digest,
    repeats_of_bucket,
)

WORDS = st.lists(st.sampled_from("abcdefg"), max_size=12)


def slow(words: list[str]) -> list[bool]:
    return [word in words[:index] for index, word in enumerate(words)]


@given(WORDS)
def test_repeats_are_what_came_before(words: list[str]) -> None:
    seen = Seen()
    assert [seen(digest(word)) for word in words] == slow(words)


@settings(max_examples=60)
@given(st.lists(WORDS, min_size=1, max_size=5), st.integers(1, 4))
def test_tasks_and_buckets_find_what_one_process_finds(tasks: list[list[str]], count: int) -> None:
    recorders = [Recorder() for _ in tasks]
    for recorder, words in zip(recorders, tasks, strict=True):
        assert not any(recorder(digest(word)) for word in words)
    buckets = [recorder.buckets(count) for recorder in recorders]
    found = [repeats_of_bucket([parts[bucket] for parts in buckets]) for bucket in range(count)]
    answers = []
    for task, words in enumerate(tasks):
        ordinals = sorted(ordinal for bucket in found for ordinal in bucket[task].tolist())
        answer = Answers(np.array(ordinals))
        answers += [answer(digest(word)) for word in words]
    assert answers == slow([word for words in tasks for word in words])
