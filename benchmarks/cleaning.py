"""Steps of cleaning on the text in data/raw: what each drops, how fast, py3langid beside it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _timing import ROOT, default_settings, print_header, require, time_in_turns
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from wrinklefree.text.clean.contamination import count_documents_with, drop_contaminated
from wrinklefree.text.clean.counts import STEPS, Counts
from wrinklefree.text.clean.documents import drop_repeated_documents
from wrinklefree.text.clean.evaluation import evaluation_ngrams
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.language import (
    PREFIX_CHARACTERS,
    drop_other_languages,
    language_probabilities,
)
from wrinklefree.text.clean.paragraphs import drop_repeated_paragraphs
from wrinklefree.text.clean.repeats import Seen
from wrinklefree.text.clean.settings import CleaningSettings
from wrinklefree.text.clean.source import clean_source
from wrinklefree.text.documents.parquet import read_documents

CHECKED = 100
REPEATS = 2
TIMED_BYTES = 4_000_000
"""Of the beginning of each source."""


def print_dropped(raw: dict[str, Path], settings: CleaningSettings, sources: Any) -> None:
    """What each step drops of each source, as percentages of the bytes of both its splits."""
    print(f"{'dropped, percent':<16}" + "".join(f"{step:>21}" for step in STEPS))
    for name in raw:
        with TemporaryDirectory() as folder:
            work = Path(folder)
            own = sources[name].cleaning
            facts = clean_source(name, settings, own, raw, work, work=work / "work", cache=work)
        read, kept = (sum(s["bytes"] for s in facts[key].values()) for key in ("read", "kept"))
        dropped = [facts["dropped"][step]["bytes"] for step in STEPS]
        require(read == kept + sum(dropped), f"every byte of {name} kept or counted as dropped")
        print(f"{name:<16}" + "".join(f"{100 * size / read:21.2f}" for size in dropped))


def calls_for(
    items: list[Item], settings: CleaningSettings, evaluation: np.ndarray
) -> dict[str, Callable[[], None]]:
    """Each step alone on all of ``items``."""
    n = settings.decontamination.ngram
    least = settings.paragraphs.min_characters
    counts = np.zeros(len(evaluation), dtype=np.uint32)
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = [document.text[:PREFIX_CHARACTERS] for document, _ in items]
    return {
        "documents": lambda: drain(drop_repeated_documents(items, Seen(), Counts())),
        "language": lambda: drain(drop_other_languages(items, settings.language, Counts())),
        "py3langid alone": lambda: drain(map(model.classify, texts)),
        "paragraphs": lambda: drain(drop_repeated_paragraphs(items, least, Seen(), Counts())),
        "counting n-grams": lambda: drain(count_documents_with(items, evaluation, n, counts)),
        "decontamination": lambda: drain(drop_contaminated(items, evaluation, n, Counts())),
    }


def drain(items: Iterable[Any]) -> None:
    for _ in items:
        pass


def check_language(items: list[Item]) -> None:
    model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    texts = [document.text for document, _ in items[:CHECKED]]
    expected = [dict(model.rank(text[:PREFIX_CHARACTERS]))["en"] for text in texts]
    error = np.abs(language_probabilities(texts, "en") - expected).max()
    require(bool(error < 1e-4), f"probabilities of py3langid within 1e-4, are off by {error:.2g}")


def main() -> None:
    settings, _ = default_settings()
    raw = {name: ROOT / "data" / "raw" / name for name in settings.sources}
    if not all((folder / "manifest.json").is_file() for folder in raw.values()):
        print("no figures: data/raw is not complete; run `snakemake fetch` first")
        return
    print_header("Cleaning of the documents in data/raw")
    print_dropped(raw, settings.cleaning, settings.sources)
    with TemporaryDirectory() as cache:
        n = settings.cleaning.decontamination.ngram
        references = settings.cleaning.references
        evaluation = evaluation_ngrams(raw, references, n, Counts(), cache=Path(cache))
    print("\nmegabytes of a source per second")
    for name, folder in raw.items():
        items = []
        size = 0
        for item in read_documents(folder):
            items.append(item)
            size += len(item[0].text.encode())
            if size >= TIMED_BYTES:
                break
        check_language(items)
        times = time_in_turns(calls_for(items, settings.cleaning, evaluation), REPEATS)
        rates = (f"{step} {size / statistics.median(t) / 1e6:.1f}" for step, t in times.items())
        print(f"{name:<16}" + ", ".join(rates))


if __name__ == "__main__":
    main()
