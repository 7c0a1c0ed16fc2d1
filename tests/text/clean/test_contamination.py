from __future__ import annotations

import re

import numpy as np
from cleaner import OFF, Texts, slow_ngrams
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.text.clean.contamination import convicting, count_documents_with, drop_contaminated
from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.ngrams import different_ngrams
from wrinklefree.text.documents.document import Document

PARAGRAPH = st.lists(st.sampled_from("abcd"), min_size=1, max_size=6).map(" ".join)
TEXT = st.lists(PARAGRAPH, min_size=1, max_size=3).map("\n\n".join)
TEXTS = st.lists(st.tuples(TEXT, st.sampled_from(["train", "held_out"])), max_size=8)


def on(n: int, most: int = 10) -> dict:
    settings = {"enabled": True, "ngram": n, "max_training_documents": most}
    return {**OFF, "decontamination": settings}


def slow(texts: Texts, evaluation: list[str], n: int, most: int) -> Texts:
    wanted = {gram for text in evaluation for gram in slow_ngrams(text, n)}
    documents = [text.split("\n\n") if split == "train" else [] for text, split in texts]
    found = [{g for part in parts for g in slow_ngrams(part, n)} & wanted for parts in documents]
    guilty = {g for g in wanted if sum(g in grams for grams in found) <= most}
    left = []
    for (text, split), parts in zip(texts, documents, strict=True):
        bad = [bool(guilty & set(slow_ngrams(part, n))) for part in parts]
        if not any(bad):
            left.append((text, split))
            continue
        kept = "".join(
            piece for index, piece in enumerate(re.split(r"(\n\n)", text)) if not bad[index // 2]
        )
        if kept:
            left.append((kept, split))
    return left


@settings(max_examples=200)
@given(TEXTS, st.lists(TEXT, max_size=3), st.integers(1, 4), st.integers(1, 3))
def test_paragraphs_that_go_are_those_of_the_slow_reference(
    texts: Texts, evaluation: list[str], n: int, most: int
) -> None:
    items = [(Document("i", text), split) for text, split in texts]
    hashes = different_ngrams([evaluation], n)
    documents_with = np.zeros(len(hashes), dtype=np.uint32)
    assert list(count_documents_with(items, hashes, n, documents_with)) == items
    hashes = convicting(hashes, documents_with, most)
    found = drop_contaminated(items, hashes, n, Counts())
    assert [(d.text, split) for d, split in found] == slow(texts, evaluation, n, most)


QUESTION = "What is the name of the longest river that flows through the old town?"


def test_a_planted_evaluation_question_goes_from_training_only(clean) -> None:
    copied = f"Before.\n\nQ: {QUESTION.upper().replace(' ', ', ')} It is this one.\n\nAfter."
    texts = [(copied, "train"), (QUESTION, "held_out"), ("A river, the old town.", "train")]
    left, facts, _ = clean(texts, **on(13))
    assert left == [("Before.\n\nAfter.", "train"), *texts[1:]]
    lost = len(copied) - len("Before.\n\nAfter.")
    assert facts["dropped"]["contamination"] == {"documents": 0, "paragraphs": 1, "bytes": lost}
    assert clean(texts, **on(15))[0] == texts
    assert clean(texts, **OFF)[0] == texts


def test_held_out_text_of_other_sources_counts(clean) -> None:
    texts = [(QUESTION, "train"), ("something else", "train")]
    other = [(QUESTION, "held_out"), ("something else", "train")]
    left, facts, _ = clean(texts, others={"other": other}, **on(13))
    assert left == texts[1:]
    assert facts["dropped"]["contamination"]["documents"] == 1


def test_words_that_many_training_documents_have_are_templates(clean) -> None:
    texts = [(f"{QUESTION} {number}", "train") for number in range(3)] + [(QUESTION, "held_out")]
    assert clean(texts, **on(13, most=2))[0] == texts
    texts.append(("another", "train"))
    assert clean(texts, **on(13, most=3))[0] == texts[3:]


def test_a_short_evaluation_text_convicts_a_paragraph_of_the_same_words(clean) -> None:
    texts = [("Two and two?\n\nFour", "train"), ("what are two and two", "train")]
    texts.append(("two AND two", "held_out"))
    assert clean(texts, **on(13))[0] == [("Four", "train"), *texts[1:]]
