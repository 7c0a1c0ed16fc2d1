from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.evaluate.data_report.overlap import find_overlaps

DIGESTS = st.lists(st.integers(0, 9), max_size=12)
SOURCES = st.dictionaries(
    st.sampled_from("abcd"), st.tuples(DIGESTS, DIGESTS), min_size=1, max_size=4
)


@settings(max_examples=80, deadline=None)
@given(SOURCES)
def test_repetitions_are_those_that_sets_find(sources: dict[str, tuple[list[int], list[int]]]):
    train = {name: np.array(digests, dtype=np.uint64) for name, (digests, _) in sources.items()}
    held_out = {name: np.array(digests, dtype=np.uint64) for name, (_, digests) in sources.items()}
    found = find_overlaps(train, held_out)
    trained = {name: set(digests) for name, (digests, _) in sources.items()}
    everything = set().union(*trained.values())
    for name, (digests, kept_out) in sources.items():
        assert found.repeated[name] == len(digests) - len(trained[name])
        assert found.held_out_in_training[name] == sum(d in everything for d in kept_out)
    pairs = {(first, second): texts for first, second, texts in found.between}
    expected = {(a, b): len(trained[a] & trained[b]) for a in sources for b in sources if a < b}
    assert pairs == {pair: texts for pair, texts in expected.items() if texts}
