"""Step 4: training documents that read like a bad source, not like a good one, go.

As for DataComp-LM (2406.11794, section 4.4) and Ultra-FineWeb (2505.05427) the judge is linear and
light. Theirs is fastText; here it is logistic regression over hashed words and runs of words, whose
loss has one minimum, so that the same text gives the same judge.

There are two judges. The digest of a text puts a document into one of two halves; each half is
judged by what was trained on the other one. So a source can be named bad and be filtered, too, as
a crawl in which there is some good: no document is judged by a judge that has learnt its text.

Shapes: D documents, F features, H halves.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack
from scipy.special import expit

from wrinklefree.errors import UserError
from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.items import Item, batches, text_batches
from wrinklefree.text.clean.ngrams import ngram_hashes
from wrinklefree.text.clean.repeats import digest
from wrinklefree.text.documents.parquet import read_texts
from wrinklefree.text.documents.settings import QualitySettings

FEATURE_BITS = 20
FEATURES = 1 << FEATURE_BITS
"""Runs of words share a feature where the first bits of their hashes are equal."""
INVERSE_STRENGTH = 1.0
"""Of the squared weights against the loss: scikit-learn's ``C``. Of 0.03 to 100 the best at telling
noise from good text where the bad source has both (docs/LOG.md)."""
_TOLERANCE = 1e-6
_MAX_ITERATIONS = 10_000
_AUC_DIGITS = 4


def is_judged(name: str, settings: QualitySettings) -> bool:
    """Whether documents of source ``name`` may go."""
    return settings.enabled and name not in settings.good


def train_judges(
    raw: dict[str, Path], settings: QualitySettings
) -> tuple[np.ndarray, dict[str, Any]]:
    """The weights of both judges, float64 [F + 1, H] with the intercepts last, and facts.

    Facts: the training documents of each kind, and ``auc``, the chance that a good one scores above
    a bad one, each judged by the judge that has not seen it. Both kinds count alike, however many
    documents they have. Memory: 200 MB, and about 10 bytes for each byte of text learnt from.

    Parameters
    ----------
    raw : fetched folders of all sources. Held-out documents teach nothing.

    Raises
    ------
    UserError : a half has no good or no bad document.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second
    from sklearn.metrics import roc_auc_score

    limit = settings.max_megabytes * 1_000_000
    good, bad = (
        [text for name in names for text in _sample(raw[name], limit)]
        for names in (settings.good, settings.bad)
    )
    texts = good + bad
    good_D = np.arange(len(texts)) < len(good)
    half_D = _halves(texts)
    parts = [word_features(batch, settings.ngram) for batch in text_batches(texts)]
    features_DF = csr_array(vstack(parts))
    judges_FH = np.empty((FEATURES + 1, 2))
    for half in range(2):
        others_D = half_D != half
        _require_both(good_D[others_D], settings)
        model = LogisticRegression(
            C=INVERSE_STRENGTH,
            class_weight="balanced",
            # Goes through the documents one by one, so that threads change no digit.
            solver="liblinear",
            dual=True,
            tol=_TOLERANCE,
            max_iter=_MAX_ITERATIONS,
            random_state=0,
        ).fit(features_DF[others_D], good_D[others_D])
        judges_FH[:, half] = np.append(model.coef_[0], model.intercept_)
    auc = roc_auc_score(good_D, _scores(features_DF, half_D, judges_FH))
    facts = {"good": len(good), "bad": len(bad), "auc": round(float(auc), _AUC_DIGITS)}
    return judges_FH, facts


def drop_low_quality(
    items: Iterable[Item], judges_FH: np.ndarray, settings: QualitySettings, counts: Counts
) -> Iterator[Item]:
    """``items`` without training documents below the threshold. Memory holds a batch."""
    for batch in batches(items):
        texts = [document.text for document, _ in batch]
        scores = quality_scores(texts, judges_FH, settings.ngram).tolist()
        for (document, split), score in zip(batch, scores, strict=True):
            if split != "train" or score >= settings.threshold:
                yield document, split
            else:
                counts.drop_document("quality", document.text)


def quality_scores(texts: Sequence[str], judges_FH: np.ndarray, ngram: int) -> np.ndarray:
    """Probability that each text is good, were good and bad ones as many, float64 [D].

    Independent of the other texts.
    """
    return _scores(word_features(texts, ngram), _halves(texts), judges_FH)


def word_features(texts: Sequence[str], ngram: int) -> csr_array:
    """Runs of 1 to ``ngram`` words by hash, as log(1 + count), to length 1: float64 [D, F]."""
    found = [ngram_hashes(texts, n) for n in range(1, ngram + 1)]
    hashes = np.concatenate([hashes for hashes, _ in found])
    document = np.concatenate([document for _, document in found])
    feature = (hashes >> np.uint64(64 - FEATURE_BITS)).astype(np.int64)
    cells, counts = np.unique(document * FEATURES + feature, return_counts=True)
    document, feature = np.divmod(cells, FEATURES)
    values = np.log1p(counts)
    values /= np.sqrt(np.bincount(document, values**2, minlength=len(texts)))[document]
    starts = np.searchsorted(document, np.arange(len(texts) + 1))
    # liblinear takes no wider indices.
    indices = (feature.astype(np.int32), starts.astype(np.int32))
    return csr_array((values, *indices), shape=(len(texts), FEATURES))


def _scores(features_DF: csr_array, half_D: np.ndarray, judges_FH: np.ndarray) -> np.ndarray:
    logits_DH = features_DF @ judges_FH[:-1] + judges_FH[-1]
    return expit(logits_DH[np.arange(len(half_D)), half_D])


def _halves(texts: Sequence[str]) -> np.ndarray:
    return np.array([digest(text)[-1] & 1 for text in texts], dtype=np.int64)


def _sample(folder: Path, limit: int) -> list[str]:
    """At most ``limit`` bytes of training text: the documents with the smallest digests.

    They come from all over the source, whatever its order.
    """
    kept: list[tuple[int, str]] = []
    size = 0
    for text in read_texts(folder, "train"):
        heapq.heappush(kept, (-int.from_bytes(digest(text)), text))
        size += len(text.encode())
        while size > limit:
            size -= len(heapq.heappop(kept)[1].encode())
    return [text for _, text in kept]


def _require_both(good_D: np.ndarray, settings: QualitySettings) -> None:
    for kind, number in (("good", good_D.sum()), ("bad", (~good_D).sum())):
        if not number:
            raise UserError(
                f"cleaning.quality.{kind}: half of the {kind} documents, which one of the two"
                f" judges learns from, are none: {', '.join(getattr(settings, kind))} has too few"
                f" training documents within max_megabytes {settings.max_megabytes}; name a larger"
                " source, or raise max_megabytes"
            )
