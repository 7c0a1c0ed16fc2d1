"""``clean``: the documents of one source without what its cleaning settings remove."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.schema.splits import SPLITS
from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.evaluation import evaluation_ngrams
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.local import clean_locally
from wrinklefree.text.clean.quality import is_judged, train_judges
from wrinklefree.text.clean.settings import CleaningSettings, DatatroveEngine
from wrinklefree.text.documents.parquet import DocumentWriter, read_domain
from wrinklefree.text.documents.settings import CleaningSteps


def clean_source(
    name: str,
    settings: CleaningSettings,
    own: CleaningSteps | None,
    raw: dict[str, Path],
    folder: Path,
    *,
    work: Path,
    cache: Path,
) -> dict[str, Any]:
    """Write the cleaned ``documents.parquet`` of source ``name`` and return its facts.

    The same input gives the same bytes, with either engine and any number of tasks; only MinHash
    may keep another of several near duplicates when the number of tasks changes.

    Parameters
    ----------
    own : what differs for this source from ``settings``.
    raw : fetched folders of all sources: their held-out splits are looked for in this one's text,
        and good and bad ones among them teach what text is good.
    work : for intermediate files; an interrupted datatrove pipeline goes on from there.
    cache : keeps downloads of references between runs.

    Raises
    ------
    UserError : no document, or no training document, is left; datatrove is asked for and absent;
        too little good or bad text.
    """
    steps = settings.steps_for(own)
    counts = Counts()
    judges_FH, facts = None, {}
    if is_judged(name, steps.quality):
        judges_FH, facts["quality"] = train_judges(raw, steps.quality)
    items: Iterable[Item]
    engine, references = settings.engine, settings.references
    if isinstance(engine, DatatroveEngine):
        clean = _datatrove_engine()
        items = clean(steps, engine, references, name, raw, judges_FH, work, cache, counts)
    else:
        n = steps.decontamination.ngram
        find = partial(evaluation_ngrams, raw, references, n, counts, cache=cache)
        items = clean_locally(name, steps, raw[name], find, judges_FH, work, counts)
    domain = read_domain(raw[name])
    kept = Counts()
    with DocumentWriter(folder, domain) as writer:
        for document, split in items:
            kept.count_read(document.text, split)
            writer.append(document, split)
    _check_something_left(name, counts, kept)
    return {**facts, **counts.as_dict(), "kept": dict(kept.read), "domain": domain}


def _check_something_left(name: str, counts: Counts, kept: Counts) -> None:
    for split in SPLITS:
        before, after = counts.read[split]["documents"], kept.read[split]["documents"]
        if before and not after and (split == "train" or not kept.read["train"]["documents"]):
            raise UserError(
                f"cleaning leaves no {split} document of source {name}; of all it read it dropped:"
                f" {counts.summary()}. Change the step that dropped most, in cleaning or"
                f" sources.{name}.cleaning of params.yaml"
            )


def _datatrove_engine() -> Any:
    try:
        from wrinklefree.text.clean.datatrove import clean_with_datatrove
    except ImportError as error:
        if (error.name or "").startswith("wrinklefree"):
            raise
        raise UserError(
            f"cleaning.engine.kind is datatrove, but {error.name or error} can't be imported;"
            " install wrinklefree[datatrove], or use kind: local"
        ) from error
    return clean_with_datatrove
