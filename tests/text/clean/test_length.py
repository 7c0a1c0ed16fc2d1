from __future__ import annotations

from cleaner import OFF


def test_lengths_are_characters_and_bounds_belong_to_what_stays(clean) -> None:
    texts = [("ä" * n, split) for n in range(1, 7) for split in ("train", "held_out")]
    left, facts, _ = clean(texts, **{**OFF, "min_characters": 3, "max_characters": 5})
    assert left == texts[4:10]
    assert facts["dropped"]["length"] == {"documents": 6, "paragraphs": 0, "bytes": 2 * 2 * 9}
