from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cleaner import slow_ngrams
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.text.clean import ngrams
from wrinklefree.text.clean.ngrams import HashIndex, different_ngrams, ngram_hashes

TEXTS = st.lists(
    st.lists(st.sampled_from(["one", "Two", "three!", " ", "-", "four_4", "Ünï"]), max_size=9).map(
        " ".join
    ),
    max_size=6,
)


@settings(max_examples=150)
@given(TEXTS, st.integers(1, 5))
def test_hashes_are_equal_where_the_words_are(texts: list[str], n: int) -> None:
    hashes, owner = ngram_hashes(texts, n)
    expected = [(index, gram) for index, text in enumerate(texts) for gram in slow_ngrams(text, n)]
    assert owner.tolist() == [index for index, _ in expected]
    names = dict(zip(hashes.tolist(), (gram for _, gram in expected), strict=True))
    assert len(names) == len({gram for _, gram in expected})
    assert [names[value] for value in hashes.tolist()] == [gram for _, gram in expected]


def test_a_run_longer_than_every_text_costs_no_more_than_the_longest() -> None:
    hashes, owner = ngram_hashes(["a b c", "d"], 10**15)
    assert hashes.tolist() == ngram_hashes(["a b c", "d"], 3)[0].tolist()
    assert owner.tolist() == [0, 1]


def test_hashes_do_not_depend_on_what_else_is_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a b c d", "b c", "c b"]
    before = ngram_hashes(texts, 3)[0].tolist()
    monkeypatch.setattr(ngrams, "_MAX_CACHED_WORDS", 0)
    assert [ngram_hashes([text], 3)[0].tolist() for text in texts] == [
        before[:2],
        before[2:3],
        before[3:],
    ]


def test_hashes_are_the_polynomial_of_the_words_hashes() -> None:
    words = [
        int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")
        for word in (b"a", b"b_1", b"\xc3\xbc")
    ]
    expected = 0
    for word in words:
        expected = (expected * 0x9E3779B97F4A7C15 + word) % 2**64
    # They lie in files between processes, so they must not depend on the process.
    assert ngram_hashes(["A -- b_1, Ü!"], 3)[0].tolist() == [expected]


@given(TEXTS)
def test_different_hashes_are_the_sorted_set(texts: list[str]) -> None:
    expected = np.unique(ngram_hashes(texts, 2)[0])
    assert np.array_equal(different_ngrams([[text] for text in texts], 2), expected)


def test_merging_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number % 7} {number}" for number in range(40)]
    expected = np.unique(ngram_hashes(texts, 1)[0])
    monkeypatch.setattr(ngrams, "_MERGED_AT", 5)
    assert np.array_equal(different_ngrams(([text] for text in texts), 1), expected)


@given(st.sets(st.integers(0, 2**64 - 1)), st.lists(st.integers(0, 2**64 - 1)), st.data())
def test_the_index_finds_what_is_there_and_nothing_else(there, others, data) -> None:
    ordered = sorted(there)
    wanted = others + (data.draw(st.lists(st.sampled_from(ordered))) if ordered else [])
    place, position = HashIndex(np.array(ordered, dtype=np.uint64)).find(
        np.array(wanted, dtype=np.uint64)
    )
    expected = [(i, ordered.index(value)) for i, value in enumerate(wanted) if value in there]
    assert list(zip(place.tolist(), position.tolist(), strict=True)) == expected
