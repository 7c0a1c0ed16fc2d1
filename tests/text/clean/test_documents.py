from __future__ import annotations

from cleaner import OFF


def test_of_equal_documents_the_first_stays_whatever_its_split(clean) -> None:
    texts = [("a", "train"), ("b", "held_out"), ("a", "held_out"), ("a ", "train"), ("b", "train")]
    left, facts, _ = clean(texts, **{**OFF, "deduplicate_documents": True})
    assert left == [("a", "train"), ("b", "held_out"), ("a ", "train")]
    assert facts["dropped"]["repeated_documents"] == {"documents": 2, "paragraphs": 0, "bytes": 2}


def test_without_the_setting_all_stay(clean) -> None:
    texts = [("a", "train"), ("a", "train")]
    assert clean(texts, **OFF)[0] == texts
