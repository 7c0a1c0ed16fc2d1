"""Step 3: documents of another language go, as py3langid's model tells them.

The model comes inside py3langid's wheel: naive Bayes over byte n-grams, which an automaton finds
(langid.py, Lui and Baldwin 2012). py3langid walks the automaton byte by byte in Python, about 1
MB/s; here all documents of a batch walk it side by side. Shapes: D documents, F features, L
languages.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from scipy.sparse import csr_array

from wrinklefree.errors import UserError
from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.items import Item, batches
from wrinklefree.text.documents.settings import LanguageSettings

PREFIX_CHARACTERS = 2000
"""Only so much of a document is looked at; more of it changes the answer of few and costs time."""


def drop_other_languages(
    items: Iterable[Item], settings: LanguageSettings, counts: Counts
) -> Iterator[Item]:
    """``items`` in which the language has at least the set probability. Memory holds a batch.

    Raises UserError for a language that the model does not know.
    """
    for batch in batches(items):
        texts = [document.text for document, _ in batch]
        found = language_probabilities(texts, settings.code)
        for item, probability in zip(batch, found.tolist(), strict=True):
            if probability >= settings.min_probability:
                yield item
            else:
                counts.drop_document("language", item[0].text)


def language_probabilities(texts: Sequence[str], code: str) -> np.ndarray:
    """Probability of language ``code`` for the beginning of each text, float64 [D].

    As py3langid computes it with ``norm_probs``: independent of the other texts. A text in which
    the model finds nothing has the same small probability for every language.
    """
    model = _model()
    if code not in model.languages:
        raise UserError(
            f"cleaning.language.code is {code}, which py3langid does not know; it knows"
            f" {', '.join(sorted(set(model.languages)))}"
        )
    encoded = [_encode(text[:PREFIX_CHARACTERS]) for text in texts]
    scores_DL, found_D = model.scores(encoded)
    lengths_D = np.array([max(len(text), 1) for text in encoded], dtype=np.float32)
    scores_DL /= np.sqrt(lengths_D)[:, None]
    scores_DL[~found_D] = 0.0
    scores_DL = np.exp(scores_DL - scores_DL.max(axis=1, keepdims=True)).astype(np.float64)
    # A language may have a class for each of its scripts.
    wanted_L = np.array([language == code for language in model.languages])
    return scores_DL[:, wanted_L].sum(axis=1) / scores_DL.sum(axis=1)


def _encode(text: str) -> bytes:
    text = text.lower() if text.isupper() else text
    return unicodedata.normalize("NFC", text).encode()


class _Model:
    def __init__(self) -> None:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        model = LanguageIdentifier.from_model_file(MODEL_FILE)
        self.languages: list[str] = list(model.nb_classes)
        self._weights_FL = np.asarray(model.nb_ptc, dtype=np.float32)
        self._prior_L = np.asarray(model.nb_pc, dtype=np.float32)
        self._next = np.asarray(model.tk_nextmove)
        self._row = np.asarray(model.tk_row, dtype=np.int64) << 8
        self._feature = np.asarray(model.tk_output, dtype=np.int64)

    def scores(self, texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Unnormalised log-probabilities float32 [D, L], and which texts have features, bool [D]"""
        features = len(self._weights_FL)
        visits, counts = np.unique(self._visits(texts), return_counts=True)
        document, feature = np.divmod(visits, features)
        logarithms = np.log1p(counts.astype(np.float32))
        starts = np.searchsorted(document, np.arange(len(texts) + 1))
        counts_DF = csr_array((logarithms, feature, starts), shape=(len(texts), features))
        return counts_DF @ self._weights_FL + self._prior_L, np.diff(starts) > 0

    def _visits(self, texts: list[bytes]) -> np.ndarray:
        """document * F + feature, for every feature at every byte."""
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        lengths = np.array([len(texts[index]) for index in order])
        longest = lengths[0] if len(lengths) else 0
        padded = b"".join(texts[index].ljust(longest, b"\0") for index in order)
        bytes_TD = np.frombuffer(padded, np.uint8).reshape(len(texts), longest).T.copy()
        base_D = np.array(order, dtype=np.int64) * len(self._weights_FL)
        state_D = np.zeros(len(texts), dtype=np.int64)
        found = [np.empty(0, np.int64)]
        for position in range(longest):
            # Longest first, so those that go on are in front.
            active = int(np.searchsorted(-lengths, -position))
            state_D = self._next[self._row[state_D[:active]] + bytes_TD[position, :active]]
            feature_D = self._feature[state_D]
            hit = feature_D >= 0
            found.append(base_D[:active][hit] + feature_D[hit])
        return np.concatenate(found)


@cache
def _model() -> _Model:
    return _Model()
