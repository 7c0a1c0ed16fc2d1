from __future__ import annotations

from wrinklefree.evaluate.data_report.drops import drops_of


def test_counts_are_found_in_every_form_and_nothing_else_is_taken_for_one():
    facts = {
        "documents": 5,
        "dropped_empty": 2,
        "skipped": {"too_long": 1, "broken": {"documents": 3, "bytes": 40}},
        "dropped": {"language": {"documents": 1, "paragraphs": 0, "bytes": 9}},
        "skipped_records": 4,
        "bad_records": {"broken JSON": 6},
        "skipped_first": "file.jsonl line 3",
        "skipped_examples": {"broken": ["line 1"]},
        "droppedness": 1,
        "read": {"train": {"documents": 7}},
    }
    assert drops_of(facts) == {
        "broken JSON": {"documents": 6},
        "language": {"documents": 1, "paragraphs": 0, "bytes": 9},
        "empty": {"documents": 2},
        "broken": {"documents": 3, "bytes": 40},
        "too_long": {"documents": 1},
        "records": {"documents": 4},
    }


def test_one_reason_in_two_places_is_added_up():
    assert drops_of({"dropped": {"empty": 1}, "dropped_empty": 2}) == {"empty": {"documents": 3}}
