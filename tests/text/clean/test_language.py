from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from cleaner import OFF
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from wrinklefree.errors import UserError
from wrinklefree.text.clean import language
from wrinklefree.text.clean.language import language_probabilities
from wrinklefree.text.generators.mathematics import document

ENGLISH = "The committee has agreed that the bridge will be repaired before the winter comes."
GERMAN = "Der Ausschuss hat beschlossen, dass die Brücke vor dem Winter ausgebessert wird."
FRENCH = "Le comité a décidé que le pont serait réparé avant que l'hiver n'arrive au village."
TEXTS = [
    ENGLISH,
    GERMAN,
    FRENCH,
    ENGLISH.upper(),
    "",
    "\n\t",
    "12 + 7 = 19",
    "Привет, мир",
    "Добар дан, како сте?",
    "你好，世界",
    "Cafe\u0301 au lait",
    *(document(3, number) for number in range(20)),
]


@cache
def reference() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@pytest.mark.parametrize("code", ["en", "de", "sr", "zh"])
def test_probabilities_are_those_of_py3langid(code: str) -> None:
    expected = [dict(reference().rank(text))[code] for text in TEXTS]
    assert language_probabilities(TEXTS, code) == pytest.approx(expected, abs=3e-5)


def test_a_text_is_judged_alike_in_every_batch() -> None:
    together = language_probabilities(TEXTS, "en")
    apart = [language_probabilities([text], "en")[0] for text in TEXTS]
    backwards = language_probabilities(TEXTS[::-1], "en")[::-1]
    assert np.array_equal(together, apart)
    assert np.array_equal(together, backwards)


def test_only_the_beginning_of_a_text_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "PREFIX_CHARACTERS", len(ENGLISH))
    mixed = language_probabilities([ENGLISH, ENGLISH + GERMAN * 9], "en")
    assert mixed[0] == mixed[1]


def test_documents_of_another_language_go_from_both_splits(clean) -> None:
    texts = [(ENGLISH, "train"), (GERMAN, "train"), (FRENCH, "held_out"), (ENGLISH, "held_out")]
    on = {**OFF, "language": {"enabled": True}}
    left, facts, _ = clean(texts, **on)
    assert left == [texts[0], texts[3]]
    size = len((GERMAN + FRENCH).encode())
    assert facts["dropped"]["language"] == {"documents": 2, "paragraphs": 0, "bytes": size}
    german = {**OFF, "language": {"enabled": True, "code": "de"}}
    assert clean(texts, **german)[0] == [texts[1]]


def test_the_least_probability_decides(clean) -> None:
    name = "Joan Miró i Ferrà was a Catalan painter, sculptor, and ceramicist from Spain."
    texts = [(name, "train"), (ENGLISH, "train")]
    for least, kept in ((0.3, 2), (0.6, 1)):
        settings = {**OFF, "language": {"enabled": True, "min_probability": least}}
        assert len(clean(texts, **settings)[0]) == kept


def test_an_unknown_language_names_the_known_ones(clean) -> None:
    with pytest.raises(UserError, match=r"code is xx.*af, am.*zu"):
        clean([("a", "train")], **{**OFF, "language": {"code": "xx"}})
