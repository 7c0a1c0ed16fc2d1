"""The engine ``datatrove``: the same steps as pipelines of tasks, here or on a Slurm cluster.

Tasks share the documents of a source by row groups, in order. What has to be known of all
documents (which digests repeat, which n-grams are templates) is gathered between pipelines in
files, by buckets of hashes, so that no task holds more than its share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.datatrove_minhash import minhash_pipelines
from wrinklefree.text.clean.datatrove_run import run_pipelines
from wrinklefree.text.clean.datatrove_steps import (
    CountNgrams,
    DigestFiles,
    EvaluationStep,
    FilterStep,
    FindConvicting,
    FindRepeats,
    Pipeline,
    ReadPart,
    ReadSlice,
    WritePart,
    part_folder,
)
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.settings import DatatroveEngine
from wrinklefree.text.documents.parquet import read_documents
from wrinklefree.text.documents.settings import CleaningSteps, Source


class _Names(NamedTuple):
    """Folders below the work folder."""

    documents: str = "repeated_documents"
    paragraphs: str = "repeated_paragraphs"
    ngrams: str = "ngrams"
    filtered: str = "filtered"
    whole: str = "without_paragraphs"
    distinct: str = "without_near_duplicates"
    cleaned: str = "cleaned"


_NAMES = _Names()


def clean_with_datatrove(
    steps: CleaningSteps,
    engine: DatatroveEngine,
    references: dict[str, Source],
    name: str,
    raw: dict[str, Path],
    work: Path,
    cache: Path,
    counts: Counts,
) -> Iterator[Item]:
    """The documents of ``raw[name]`` that the steps leave, in order; see ``clean_locally``.

    Everything between lies in ``work``, which all machines must see; tasks that are complete there
    are not run again. Memory of a task: 40 bytes for each digest and 40 for each evaluation
    n-gram of its share, and a few megabytes of text.

    Raises UserError where a task on a cluster failed.
    """
    folders = {key: path.resolve() for key, path in raw.items()}
    pipelines = build_pipelines(
        steps, engine.tasks, references, name, folders, work.resolve(), cache.resolve()
    )
    run_pipelines(pipelines, engine, work.resolve(), name)
    for file in sorted((work / "counts").glob("*/*.json")):
        counts.add(json.loads(file.read_text(encoding="utf-8")))
    for rank in range(engine.tasks):
        yield from read_documents(part_folder(work, pipelines[-1].name, rank))


def build_pipelines(
    steps: CleaningSteps,
    tasks: int,
    references: dict[str, Source],
    name: str,
    raw: dict[str, Path],
    work: Path,
    cache: Path,
) -> list[Pipeline]:
    """What to run, in this order; the last one writes the parts of the result.

    ``raw``, ``work`` and ``cache``: absolute paths.
    """
    settings = steps.decontamination
    pipelines = []
    if settings.enabled:
        found = EvaluationStep(raw, references, settings.ngram, work, _NAMES.ngrams, cache)
        pipelines.append(Pipeline("evaluation", [found], 1))
    pipelines += _filters(steps, tasks, raw[name], work)
    if steps.paragraphs.deduplicate:
        pipelines += _paragraphs(steps, tasks, work)
    if steps.near_duplicates.enabled:
        last = pipelines[-1].name
        pipelines += minhash_pipelines(steps.near_duplicates, tasks, last, _NAMES.distinct, work)
    if settings.enabled:
        pipelines += _decontamination(steps, tasks, pipelines[-1].name, work)
    return pipelines


def _filters(steps: CleaningSteps, tasks: int, raw: Path, work: Path) -> list[Pipeline]:
    """Steps 1 to 3, and the digests for step 4."""
    chain: list[Any] = [ReadSlice(raw, work)]
    pipelines = []
    if steps.deduplicate_documents:
        asked, answered = (
            DigestFiles(work / _NAMES.documents, tasks, recording) for recording in (True, False)
        )
        record = FilterStep("repeated_documents", steps, work, digests=asked)
        pipelines.append(Pipeline("digests_of_documents", [ReadSlice(raw), record], tasks))
        pipelines.append(Pipeline(_NAMES.documents, [FindRepeats(asked)], tasks))
        chain.append(FilterStep("repeated_documents", steps, work, digests=answered))
    chain.append(FilterStep("length", steps, work))
    if steps.language.enabled:
        chain.append(FilterStep("language", steps, work))
    if steps.paragraphs.deduplicate:
        asked = DigestFiles(work / _NAMES.paragraphs, tasks, recording=True)
        chain.append(FilterStep("repeated_paragraphs", steps, work, digests=asked))
    chain.append(WritePart(work, _NAMES.filtered))
    return [*pipelines, Pipeline(_NAMES.filtered, chain, tasks)]


def _paragraphs(steps: CleaningSteps, tasks: int, work: Path) -> list[Pipeline]:
    """Step 4."""
    digests = DigestFiles(work / _NAMES.paragraphs, tasks, recording=False)
    drop = FilterStep("repeated_paragraphs", steps, work, digests=digests)
    chain: list[Any] = [ReadPart(work, _NAMES.filtered), drop, WritePart(work, _NAMES.whole)]
    return [
        Pipeline(_NAMES.paragraphs, [FindRepeats(digests)], tasks),
        Pipeline(_NAMES.whole, chain, tasks),
    ]


def _decontamination(steps: CleaningSteps, tasks: int, before: str, work: Path) -> list[Pipeline]:
    """Step 5, on the documents that the pipeline ``before`` left."""
    settings = steps.decontamination
    folder = work / _NAMES.ngrams
    count: list[Any] = [ReadPart(work, before), CountNgrams(folder, settings.ngram)]
    find = FindConvicting(folder, tasks, settings.max_training_documents)
    drop = FilterStep("contamination", steps, work, ngrams=folder)
    chain: list[Any] = [ReadPart(work, before), drop, WritePart(work, _NAMES.cleaned)]
    return [
        Pipeline("documents_with_ngrams", count, tasks),
        Pipeline("convicting_ngrams", [find], 1),
        Pipeline(_NAMES.cleaned, chain, tasks),
    ]
