from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
from cleaner import OFF, Texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wrinklefree.downloads.local_files import digest_of_files, find_files
from wrinklefree.errors import UserError
from wrinklefree.text.documents.settings import CleaningSteps
from wrinklefree.text.sources.bad_records import BadRecordWarning

LONG = "The longest of all paragraphs that come again, word for word, in another document."
ENGLISH = "This is a sentence that nobody will take for anything but English."
GERMAN = "Dies ist ein Satz, den niemand für etwas anderes als Deutsch halten wird."


def test_steps_are_taken_in_order_and_each_counts_its_own(clean) -> None:
    texts = [
        (GERMAN, "train"),
        (GERMAN, "train"),  # counted as a repeat, not as German
        ("tiny", "train"),  # too short before its language is asked for
        (f"{LONG}\n\n{ENGLISH}", "train"),
        (f"{LONG}\n\nSomething else that is English, too, as it should be.", "train"),
        (LONG, "held_out"),
    ]
    decontamination = {"ngram": 8}
    paragraphs = {"min_characters": 60}
    left, facts, _ = clean(
        texts, min_characters=5, decontamination=decontamination, paragraphs=paragraphs
    )
    assert [text for text, _ in left] == [
        ENGLISH,
        "Something else that is English, too, as it should be.",
        LONG,
    ]
    dropped = {step: numbers["documents"] for step, numbers in facts["dropped"].items()}
    assert dropped == {
        "repeated_documents": 1,
        "length": 1,
        "language": 1,
        "quality": 0,
        "repeated_paragraphs": 0,
        "near_duplicates": 0,
        "contamination": 0,
    }
    assert facts["dropped"]["repeated_paragraphs"]["paragraphs"] == 1
    assert facts["dropped"]["contamination"]["paragraphs"] == 1
    assert facts["read"]["train"]["documents"] == 5
    assert facts["kept"]["train"] == {"documents": 2, "bytes": sum(len(t) for t, _ in left[:2])}
    assert facts["domain"] == "d"


PARAGRAPHS = st.sampled_from(["one two", "three four five", "one two three", "ö", "six " * 9])
TEXTS = st.lists(
    st.tuples(
        st.lists(PARAGRAPHS, min_size=1, max_size=3).map("\n\n".join),
        st.sampled_from(["train", "train", "held_out"]),
    ),
    min_size=1,
    max_size=9,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TEXTS, st.booleans(), st.integers(1, 3), st.integers(1, 3))
def test_what_was_read_is_what_is_kept_and_what_was_dropped(
    clean, texts: Texts, deduplicate: bool, n: int, most: int
) -> None:
    texts = [*texts, ("a text that is seen once and never dropped", "train")]
    left, facts, _ = clean(
        texts,
        deduplicate_documents=deduplicate,
        language={"enabled": False},
        paragraphs={"min_characters": 6},
        decontamination={"ngram": n, "max_training_documents": most},
        min_characters=2,
    )
    for unit in ("documents", "bytes"):
        read, kept = (sum(split[unit] for split in facts[key].values()) for key in ("read", "kept"))
        assert read == kept + sum(step[unit] for step in facts["dropped"].values())
    assert sum(len(text.encode()) for text, _ in left) == sum(
        split["bytes"] for split in facts["kept"].values()
    )


def test_two_runs_write_the_same_bytes(clean) -> None:
    texts = [(f"{ENGLISH} {number % 5}\n\n{LONG}", "train") for number in range(12)]
    assert clean(texts)[2] == clean(texts)[2]


def test_own_settings_of_a_source_are_laid_over_the_general_ones(clean) -> None:
    texts = [(GERMAN, "train"), (ENGLISH, "train"), ("a", "train")]
    own = CleaningSteps.model_validate({"language": {"code": "de"}})
    general: dict[str, Any] = {**OFF, "min_characters": 2, "language": {"min_probability": 0.2}}
    assert clean(texts, **general)[0] == [texts[1]]
    assert clean(texts, own=own, **general)[0] == [texts[0]]


def reference(tmp_path: Path, text: str, **settings: Any) -> dict[str, Any]:
    (tmp_path / "set.txt").write_text(text)
    paths = [str(tmp_path / "set.txt")]
    digest = digest_of_files(find_files(paths))
    source = {"kind": "files", "domain": "d", "licence": "l", "paths": paths, "sha256": digest}
    return {"benchmark": {**source, **settings}}


def test_references_are_looked_for_in_training_text(clean, tmp_path: Path) -> None:
    texts = [(f"{ENGLISH}\n\n{LONG}", "train"), (LONG, "held_out")]
    on = {**OFF, "decontamination": {"ngram": 12}}
    references = reference(tmp_path, f"Question: {ENGLISH}")
    assert clean(texts[:1], references=references, **on)[0] == [(LONG, "train")]
    with pytest.raises(UserError, match=r"cleaning leaves no train document.*contamination"):
        clean(texts, references=references, **on)


@pytest.mark.parametrize("engine", [{"kind": "local"}, {"kind": "datatrove", "tasks": 1}])
def test_skipped_records_of_references_are_counted(
    clean, tmp_path: Path, engine: dict[str, Any]
) -> None:
    (tmp_path / "set.jsonl").write_text('{"text": "a question"}\n{"text": 3}\n{"text": \n')
    paths = [str(tmp_path / "set.jsonl")]
    source = {"kind": "files", "domain": "d", "licence": "l", "paths": paths}
    source |= {"sha256": digest_of_files(find_files(paths)), "on_bad_record": "skip"}
    settings = {**OFF, "decontamination": {}, "references": {"exam": source}}
    with pytest.warns(BadRecordWarning):
        _, facts, _ = clean([("text", "train")], engine=engine, **settings)
    assert facts["bad_references"] == {"exam": {"no text": 1, "not JSON": 1}}


def test_a_reference_without_text_is_an_error(clean, tmp_path: Path) -> None:
    references = reference(tmp_path, "\n")
    with pytest.raises(UserError, match=r"benchmark.*cleaning\.references\.benchmark"):
        clean([("a", "train")], **{**OFF, "decontamination": {}, "references": references})


def test_an_error_says_which_step_left_nothing(clean) -> None:
    texts = [("a" * 9, "train"), ("a" * 9, "train"), ("b", "train"), ("held", "held_out")]
    with pytest.raises(UserError) as caught:
        clean(texts, **{**OFF, "deduplicate_documents": True, "min_characters": 20})
    expected = (
        "cleaning leaves no train document of source s; of all it read it dropped: length 60.9 % of"
        " the bytes (3 documents, 0 paragraphs), repeated_documents 39.1 % of the bytes (1"
        " documents, 0 paragraphs). Change the step that dropped most, in cleaning or"
        " sources.s.cleaning of params.yaml"
    )
    assert str(caught.value) == expected


def test_a_source_that_was_all_held_out_may_stay_so(clean) -> None:
    texts = [("held", "held_out")]
    assert clean(texts, **OFF)[0] == texts


def test_without_datatrove_the_error_says_how_to_install_it(
    clean, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "wrinklefree.text.clean.datatrove":
            raise ModuleNotFoundError("No module named 'datatrove'", name="datatrove")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"datatrove can't be imported.*wrinklefree\[datatrove\]"):
        clean([("a", "train")], engine={"kind": "datatrove"})
