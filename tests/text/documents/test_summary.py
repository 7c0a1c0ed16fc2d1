from __future__ import annotations

from wrinklefree.mixture.summary import mixed
from wrinklefree.text.documents.summary import cleaned, fetched
from wrinklefree.tokens.summary import tokenized


def test_what_was_left_out_of_a_source_is_named_and_only_that():
    facts = {"documents": 8000, "bytes": 4_117_294, "dropped_empty": 0, "bad_records": {}}
    assert fetched(facts) == "8,000 documents, 4.1 MB"
    facts |= {"dropped_empty": 2, "bad_records": {"not JSON": 1500}}
    assert fetched(facts) == "8,000 documents, 4.1 MB; left out: 2 empty, 1,500 not JSON"


def test_cleaning_names_the_steps_that_dropped_something_most_first():
    counts = {"length": 0, "language": 20_000, "contamination": 180_000}
    facts = {
        "read": {"train": {"bytes": 1_900_000}, "held_out": {"bytes": 100_000}},
        "kept": {"train": {"bytes": 1_700_000}, "held_out": {"bytes": 100_000}},
        "dropped": {step: {"bytes": count} for step, count in counts.items()},
    }
    expected = "kept 1.8 MB of 2.0 MB; dropped: contamination 9.00 %, language 1.00 %"
    assert cleaned(facts) == expected
    learnt = facts | {"quality": {"good": 10, "bad": 10, "auc": 0.98765}}
    assert cleaned(learnt) == f"{expected}; good text told from bad with AUC 0.988"
    nothing = facts | {"kept": facts["read"], "dropped": {"length": {"bytes": 0}}}
    assert cleaned(nothing) == "kept 2.0 MB of 2.0 MB"


def test_tokens_of_a_source_without_training_text_have_no_length():
    facts = {"tokens": {"train": 1200, "held_out": 30}, "bytes_per_token": {"train": 2.1}}
    assert tokenized(facts) == "1,200 training tokens, 2.10 bytes each; 30 held out"
    facts = {"tokens": {"train": 0, "held_out": 30}, "bytes_per_token": {"train": None}}
    assert tokenized(facts) == "0 training tokens; 30 held out"


def test_every_domain_that_is_trained_on_is_in_the_summary_of_a_mixture():
    facts = {
        "domains": {
            "code": {"train": {"rows": 9, "tokens": 2300, "utilisation": 0.99834}},
            "spare": {"train": {"rows": 0, "tokens": 0, "utilisation": None}},
        }
    }
    assert mixed(facts) == "code 2,300 tokens, rows 99.83 % filled"
