from __future__ import annotations

import itertools
import re

from cleaner import OFF, Texts
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.paragraphs import (
    drop_repeated_paragraphs,
    split_paragraphs,
    without_paragraphs,
)
from wrinklefree.text.clean.repeats import Seen
from wrinklefree.text.documents.document import Document

PIECES = st.sampled_from(["aaaa", "bbbb", " aaaa", "cc", "\n\n", "\n \n", "\n", "\n\n\n", "  "])


def slow(texts: Texts, least: int) -> Texts:
    """Line by line: a paragraph ends where a line of space alone begins."""
    seen, left = set(), []
    for text, split in texts:
        kept, changed = "", False
        for match in re.finditer(r"(?s)(.*?)(\n\s*\n|\Z)", text):
            paragraph = match[1].strip()
            if split == "train" and len(paragraph) >= least and paragraph in seen:
                changed = True
                continue
            if split == "train" and len(paragraph) >= least:
                seen.add(paragraph)
            kept += match[0]
        if not changed or kept.strip():
            left.append((kept, split))
    return left


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.lists(PIECES, max_size=7).map("".join), st.sampled_from(["train", "held_out"]))
    ),
    st.integers(1, 5),
)
def test_repeated_paragraphs_are_those_of_the_slow_reference(texts: Texts, least: int) -> None:
    items = [(Document("i", text), split) for text, split in texts]
    found = drop_repeated_paragraphs(items, least, Seen(), Counts())
    assert [(document.text, split) for document, split in found] == slow(texts, least)


@given(st.lists(PIECES).map("".join))
def test_pieces_joined_are_the_text(text: str) -> None:
    pieces = split_paragraphs(text)
    assert "".join(pieces) == text
    assert without_paragraphs(pieces, ()) == (text if text.strip() else "")


def test_indentation_stays_and_the_separator_behind_goes() -> None:
    pieces = split_paragraphs("one\n\n  two\n \n\nthree\r\n\r\nfour")
    assert pieces[::2] == ["one", "  two", "three\r", "four"]
    assert without_paragraphs(pieces, {1}) == "one\n\nthree\r\n\r\nfour"
    assert without_paragraphs(pieces, {3}) == "one\n\n  two\n \n\nthree\r\n\r\n"
    assert without_paragraphs(pieces, range(4)) == ""


def test_only_repeats_within_the_training_split_go_and_are_counted(clean) -> None:
    long, short = "x" * 40, "y" * 20
    texts = [
        (f"{long}\n\nheld", "held_out"),
        (f"{long}\n\n{short}", "train"),
        (f"first\n\n{long}\n\nlast", "train"),
        (f"{short}\n\nend", "train"),
        (long, "train"),
        (long, "held_out"),
    ]
    on = {**OFF, "paragraphs": {"deduplicate": True, "min_characters": 30}}
    left, facts, _ = clean(texts, **on)
    expected = [texts[0], texts[1], ("first\n\nlast", "train"), texts[3], texts[5]]
    assert left == expected
    counts = {"documents": 1, "paragraphs": 2, "bytes": 42 + 40}
    assert facts["dropped"]["repeated_paragraphs"] == counts
    all_lengths = {**OFF, "paragraphs": {"deduplicate": True, "min_characters": 20}}
    assert ("end", "train") in clean(texts, **all_lengths)[0]
    assert clean(texts, **OFF)[0] == texts


def test_runs_of_blank_lines_take_linear_time() -> None:
    text = "\n ".join(itertools.repeat("a", 2)) + "\n" + " " * 200_000 + "b" + "\n \t" * 100_000
    assert "".join(split_paragraphs(text)) == text
