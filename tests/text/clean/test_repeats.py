from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.text.clean.repeats import Recorder, Seen, answers, digest, find_repeats

WORDS = st.lists(st.sampled_from("abcdefg"), max_size=12)


def slow(words: list[str]) -> list[bool]:
    return [word in words[:index] for index, word in enumerate(words)]


@given(WORDS)
def test_repeats_are_what_came_before(words: list[str]) -> None:
    seen = Seen()
    assert [seen(digest(word)) for word in words] == slow(words)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5))
def test_tasks_and_buckets_find_what_one_process_finds(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[list[str]]
) -> None:
    folder = tmp_path_factory.mktemp("digests")
    for task, words in enumerate(tasks):
        recorder = Recorder()
        assert not any(recorder(digest(word)) for word in words)
        recorder.save(folder, task, len(tasks))
    for bucket in range(len(tasks)):
        find_repeats(folder, None, bucket, len(tasks))
    found = []
    for task, words in enumerate(tasks):
        answer = answers(folder, task)
        found += [answer(digest(word)) for word in words]
    assert found == slow([word for words in tasks for word in words])


def test_digests_that_end_in_zeros_are_told_apart(tmp_path: Path) -> None:
    keys = [bytes(15) + b"a", b"a" + bytes(15), b"a" + bytes(14) + b"a", bytes(16)]
    recorder = Recorder()
    for key in [*keys, *keys]:
        recorder(key)
    recorder.save(tmp_path, 0, 1)
    find_repeats(tmp_path, None, 0, 1)
    answer = answers(tmp_path, 0)
    assert [answer(key) for key in [*keys, *keys]] == [False] * 4 + [True] * 4
