from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.evaluate.data_report.lengths import document_lengths

LENGTHS = st.one_of(
    st.integers(1, 40), st.sampled_from([2**k + d for k in range(6, 45, 7) for d in (-1, 0, 1)])
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(LENGTHS, max_size=8), max_size=4))
def test_bins_hold_the_documents_and_tokens_that_counting_finds(shards: list[list[int]]):
    found = document_lengths(np.cumsum(np.array(s, dtype=np.uint64)) for s in shards)
    lengths = [length for shard in shards for length in shard]
    documents = Counter(length.bit_length() - 1 for length in lengths)
    assert {i: n for i, n in enumerate(found.documents.tolist()) if n} == documents
    tokens = Counter[int]()
    for length in lengths:
        tokens[length.bit_length() - 1] += length
    assert {i: n for i, n in enumerate(found.tokens.tolist()) if n} == tokens
    assert found.longest == max(lengths, default=0)


def test_the_numbers_are_named_by_the_shortest_document_of_a_bin():
    found = document_lengths([np.array([1, 4, 7, 107], dtype=np.uint64)])
    assert found.as_json() == {
        "mean": 26.75,
        "longest": 100,
        "bins": {
            "1": {"documents": 1, "tokens": 1},
            "2": {"documents": 2, "tokens": 6},
            "64": {"documents": 1, "tokens": 100},
        },
    }
    assert document_lengths([]).as_json() == {"mean": None, "longest": 0, "bins": {}}
