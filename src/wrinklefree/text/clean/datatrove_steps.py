"""The steps as datatrove runs them: each sees the documents of one task.

From step to step goes datatrove's ``Document``, with the split in its metadata; from pipeline to
pipeline go files of the work folder. A task that is run again writes the same files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from datatrove.data import Document as PipelineDocument
from datatrove.pipeline.base import PipelineStep

from wrinklefree.text.clean.contamination import convicting, count_documents_with, drop_contaminated
from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.documents import drop_repeated_documents
from wrinklefree.text.clean.evaluation import evaluation_ngrams
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.language import drop_other_languages
from wrinklefree.text.clean.length import drop_unfit_lengths
from wrinklefree.text.clean.paragraphs import drop_repeated_paragraphs
from wrinklefree.text.clean.repeats import (
    Answers,
    Recorder,
    Repeats,
    repeats_of_bucket,
)
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DOCUMENTS_FILE, DocumentWriter, read_documents
from wrinklefree.text.documents.settings import CleaningSteps, Source

Documents = Iterable[PipelineDocument]


class Pipeline(NamedTuple):
    """Steps that ``tasks`` tasks take, when those of the pipeline before are done."""

    name: str
    steps: list[PipelineStep]
    tasks: int


def part_folder(work: Path, pipeline: str, rank: int) -> Path:
    """Where task ``rank`` of a pipeline leaves its documents."""
    return work / "parts" / pipeline / f"{rank:05d}"


def write_counts(counts: Counts, work: Path, name: str, rank: int) -> None:
    """Leave the counts of one task of a step in the work folder."""
    file = work / "counts" / name / f"{rank:05d}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(counts.as_dict()), encoding="utf-8")


class ReadSlice(PipelineStep):
    """The documents of a fetched folder that are this task's: whole row groups, in order."""

    name = "fetched documents"
    type = "read"

    def __init__(self, raw: Path, work: Path | None = None) -> None:
        super().__init__()
        self.raw = raw
        self.work = work
        """Where to leave what was read, if it is to be counted."""

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents."""
        counts = Counts()
        with pq.ParquetFile(self.raw / DOCUMENTS_FILE) as file:
            groups = file.num_row_groups
            mine = range(rank * groups // world_size, (rank + 1) * groups // world_size)
            for group in mine:
                for batch in file.iter_batches(1024, row_groups=[group]):
                    columns = (batch.column(key).to_pylist() for key in ("id", "text", "split"))
                    for id, text, split in zip(*columns, strict=True):
                        counts.count_read(text, split)
                        yield PipelineDocument(text=text, id=id, metadata={"split": split})
        if self.work:
            write_counts(counts, self.work, "read", rank)


class ReadPart(PipelineStep):
    """The documents that the same task of an earlier pipeline left."""

    name = "documents so far"
    type = "read"

    def __init__(self, work: Path, pipeline: str) -> None:
        super().__init__()
        self.work = work
        self.pipeline = pipeline

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents."""
        yield from _as_documents(read_documents(part_folder(self.work, self.pipeline, rank)))


class WritePart(PipelineStep):
    """Leaves the documents of a task as a file."""

    name = "documents so far"
    type = "write"

    def __init__(self, work: Path, pipeline: str) -> None:
        super().__init__()
        self.work = work
        self.pipeline = pipeline

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Takes all documents."""
        folder = part_folder(self.work, self.pipeline, rank)
        folder.mkdir(parents=True, exist_ok=True)
        with DocumentWriter(folder, self.pipeline) as writer:
            for document, split in _as_items(data):
                writer.append(document, split)


class DigestFiles(NamedTuple):
    """How a step that drops repeats works over tasks: it records, or it follows the answers."""

    folder: Path
    buckets: int
    recording: bool

    def digests(self, bucket: int, task: int) -> Path:
        """File of the digests that a task recorded for a bucket."""
        return self.folder / "digests" / f"{bucket:05d}" / f"{task:05d}.npy"

    def repeats(self, bucket: int, task: int) -> Path:
        """File of the ordinals of a task's repeats that a bucket found."""
        return self.folder / "repeats" / f"{task:05d}" / f"{bucket:05d}.npy"


class FilterStep(PipelineStep):
    """One of the steps of cleaning, the same function as without datatrove."""

    type = "filter"

    def __init__(
        self,
        name: str,
        steps: CleaningSteps,
        work: Path,
        *,
        digests: DigestFiles | None = None,
        ngrams: Path | None = None,
    ) -> None:
        """``name``: one of ``counts.STEPS``."""
        self.name = name
        super().__init__()
        self.steps = steps
        self.work = work
        self.digests = digests
        self.ngrams = ngrams

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents that stay."""
        counts = Counts()
        recorder = Recorder() if self.digests and self.digests.recording else None
        yield from _as_documents(self._filtered(_as_items(data), recorder, rank, counts))
        if self.digests and recorder:
            for bucket, records in enumerate(recorder.buckets(self.digests.buckets)):
                _save(self.digests.digests(bucket, rank), records)
        else:
            write_counts(counts, self.work, self.name, rank)

    def _filtered(
        self, items: Iterable[Item], recorder: Recorder | None, rank: int, counts: Counts
    ) -> Iterable[Item]:
        steps = self.steps
        if self.name == "repeated_documents":
            return drop_repeated_documents(items, recorder or self._answers(rank), counts)
        if self.name == "length":
            return drop_unfit_lengths(items, steps.min_characters, steps.max_characters, counts)
        if self.name == "language":
            return drop_other_languages(items, steps.language, counts)
        if self.name == "repeated_paragraphs":
            minimum = steps.paragraphs.min_characters
            is_repeat = recorder or self._answers(rank)
            return drop_repeated_paragraphs(items, minimum, is_repeat, counts)
        assert self.name == "contamination" and self.ngrams
        hashes = np.load(_convicting(self.ngrams))
        return drop_contaminated(items, hashes, steps.decontamination.ngram, counts)

    def _answers(self, rank: int) -> Repeats:
        assert self.digests
        files = [self.digests.repeats(bucket, rank) for bucket in range(self.digests.buckets)]
        return Answers(np.concatenate([np.load(file) for file in files]))


class FindRepeats(PipelineStep):
    """Task ``b`` finds the repeats among the digests of bucket ``b`` from all tasks."""

    name = "repeats among digests"
    type = "gather"

    def __init__(self, digests: DigestFiles) -> None:
        super().__init__()
        self.digests = digests

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """There are as many tasks as buckets."""
        tasks = range(world_size)
        parts = [np.load(self.digests.digests(rank, task)) for task in tasks]
        for task, ordinals in zip(tasks, repeats_of_bucket(parts), strict=True):
            _save(self.digests.repeats(rank, task), ordinals)


class EvaluationStep(PipelineStep):
    """One task finds the n-grams of all evaluation text."""

    name = "n-grams of evaluation text"
    type = "gather"

    def __init__(
        self,
        raw: dict[str, Path],
        references: dict[str, Source],
        n: int,
        work: Path,
        name: str,
        cache: Path,
    ) -> None:
        """``name``: of the folder below ``work`` for the n-grams."""
        super().__init__()
        self.raw = raw
        self.references = references
        self.n = n
        self.work = work
        self.folder = work / name
        self.cache = cache

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Needs no documents."""
        counts = Counts()
        found = evaluation_ngrams(self.raw, self.references, self.n, counts, cache=self.cache)
        _save(_evaluation(self.folder), found)
        write_counts(counts, self.work, "evaluation", rank)


class CountNgrams(PipelineStep):
    """How many training documents of this task have each n-gram of the evaluation text."""

    name = "training documents with n-grams"
    type = "gather"

    def __init__(self, folder: Path, n: int) -> None:
        super().__init__()
        self.folder = folder
        self.n = n

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Takes all documents."""
        hashes = np.load(_evaluation(self.folder))
        documents_with = np.zeros(len(hashes), dtype=np.uint32)
        for _ in count_documents_with(_as_items(data), hashes, self.n, documents_with):
            pass
        _save(_documents_with(self.folder, rank), documents_with)


class FindConvicting(PipelineStep):
    """One task adds up the counts of all and keeps the n-grams that are no templates."""

    name = "n-grams that are no templates"
    type = "gather"

    def __init__(self, folder: Path, tasks: int, max_documents: int) -> None:
        super().__init__()
        self.folder = folder
        self.tasks = tasks
        self.max_documents = max_documents

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Needs no documents."""
        hashes = np.load(_evaluation(self.folder))
        total = np.zeros(len(hashes), dtype=np.uint32)
        for task in range(self.tasks):
            total += np.load(_documents_with(self.folder, task))
        _save(_convicting(self.folder), convicting(hashes, total, self.max_documents))


def _evaluation(folder: Path) -> Path:
    return folder / "evaluation.npy"


def _convicting(folder: Path) -> Path:
    return folder / "convicting.npy"


def _documents_with(folder: Path, task: int) -> Path:
    return folder / "documents_with" / f"{task:05d}.npy"


def _save(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, array)


def _as_items(documents: Documents) -> Iterator[Item]:
    for document in documents:
        yield Document(document.id, document.text), document.metadata["split"]


def _as_documents(items: Iterable[Item]) -> Iterator[PipelineDocument]:
    for document, split in items:
        yield PipelineDocument(text=document.text, id=document.id, metadata={"split": split})
