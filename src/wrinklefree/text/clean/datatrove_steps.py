"""The steps as datatrove runs them: functions of (data, rank, number of tasks), one call per task.

From pipeline to pipeline go files of the work folder, each task's its own. A task that is run
again writes the same files.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from datatrove.data import Document as PipelineDocument
from datatrove.pipeline.dedup.minhash import MinhashDedupFilter

from wrinklefree.text.clean.contamination import convicting, count_documents_with, drop_contaminated
from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.documents import drop_repeated_documents
from wrinklefree.text.clean.evaluation import evaluation_ngrams
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.local import counted, filtered
from wrinklefree.text.clean.paragraphs import drop_repeated_paragraphs
from wrinklefree.text.clean.quality import is_judged
from wrinklefree.text.clean.repeats import Recorder, answers, save_array
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import DocumentWriter, read_documents
from wrinklefree.text.documents.settings import CleaningSteps, Source


@dataclass(frozen=True)
class Tasks:
    """What the tasks of all pipelines know. All paths are absolute."""

    steps: CleaningSteps
    references: dict[str, Source]
    name: str
    """Of the source that is cleaned."""
    raw: dict[str, Path]
    work: Path
    cache: Path

    @property
    def judges(self) -> Path:
        """What ``train_judges`` gave, where documents are judged."""
        return self.work / "judges.npy"

    def find_evaluation(self, _data: Any, rank: int, _tasks: int) -> None:
        """One task finds the n-grams of all evaluation text."""
        counts = Counts()
        n = self.steps.decontamination.ngram
        found = evaluation_ngrams(self.raw, self.references, n, counts, cache=self.cache)
        save_array(self.work / "ngrams" / "evaluation.npy", found)
        self._write_counts("evaluation", rank, counts)

    def digest_documents(self, _data: Any, rank: int, tasks: int) -> None:
        """Record the documents of this task."""
        recorder = Recorder()
        items = read_documents(self.raw[self.name], rank, tasks)
        deque(drop_repeated_documents(items, recorder, Counts()), maxlen=0)
        recorder.save(self.work / "repeated_documents", rank, tasks)

    def filter(self, _data: Any, rank: int, tasks: int) -> None:
        """Steps 1 to 4, and the digests for step 5."""
        counts, recorder = Counts(), Recorder()
        items = counted(read_documents(self.raw[self.name], rank, tasks), counts)
        is_repeat = answers(self.work / "repeated_documents", rank)
        judges_FH = np.load(self.judges) if is_judged(self.name, self.steps.quality) else None
        items = filtered(items, self.steps, counts, is_repeat, recorder, judges_FH)
        self._write("filtered", rank, items, counts)
        if self.steps.paragraphs.deduplicate:
            recorder.save(self.work / "repeated_paragraphs", rank, tasks)

    def drop(
        self, before: str, name: str, step: Callable[..., Any], _data: Any, rank: int, _tasks: int
    ) -> None:
        """Write as part ``name`` what ``step`` leaves of the documents of pipeline ``before``."""
        counts = Counts()
        self._write(name, rank, step(self.part(before, rank), rank, counts), counts)

    def without_paragraphs(
        self, items: Iterable[Item], rank: int, counts: Counts
    ) -> Iterable[Item]:
        """Step 5."""
        is_repeat = answers(self.work / "repeated_paragraphs", rank)
        minimum = self.steps.paragraphs.min_characters
        return drop_repeated_paragraphs(items, minimum, is_repeat, counts)

    def training_texts(
        self, before: str, _data: Any, rank: int, _tasks: int
    ) -> Iterator[PipelineDocument]:
        """All documents for MinHash, which finds nothing near the held-out ones: they are empty."""
        for document, split in self.part(before, rank):
            yield PipelineDocument(document.text if split == "train" else "", document.id)

    def without_near_duplicates(
        self, items: Iterable[Item], rank: int, counts: Counts
    ) -> Iterator[Item]:
        """datatrove's filter, with what it drops counted."""

        def count(document: PipelineDocument, _rank: int) -> None:
            counts.drop_document("near_duplicates", document.text)

        writer: Any = nullcontext(SimpleNamespace(write=count))
        block = MinhashDedupFilter(str(self.work / "clusters"), exclusion_writer=writer)
        documents: Any = (
            PipelineDocument(document.text, document.id, metadata={"split": split})
            for document, split in items
        )
        for document in block.run(documents, rank):
            yield Document(document.id, document.text), document.metadata["split"]

    def count_ngrams(self, before: str, _data: Any, rank: int, _tasks: int) -> None:
        """How many training documents of this task have each n-gram of the evaluation text."""
        hashes = np.load(self.work / "ngrams" / "evaluation.npy")
        found = np.zeros(len(hashes), dtype=np.uint32)
        n = self.steps.decontamination.ngram
        deque(count_documents_with(self.part(before, rank), hashes, n, found), maxlen=0)
        save_array(self.work / "ngrams" / "documents_with" / f"{rank:05d}.npy", found)

    def find_convicting(self, _data: Any, _rank: int, _tasks: int) -> None:
        """One task adds up the counts of all and keeps the n-grams that are no templates."""
        folder = self.work / "ngrams"
        hashes = np.load(folder / "evaluation.npy")
        total: Any = sum(np.load(file) for file in (folder / "documents_with").glob("*.npy"))
        most = self.steps.decontamination.max_training_documents
        save_array(folder / "convicting.npy", convicting(hashes, total, most))

    def without_contamination(
        self, items: Iterable[Item], _rank: int, counts: Counts
    ) -> Iterable[Item]:
        """Step 6."""
        hashes = np.load(self.work / "ngrams" / "convicting.npy")
        return drop_contaminated(items, hashes, self.steps.decontamination.ngram, counts)

    def part(self, pipeline: str, rank: int) -> Iterator[Item]:
        """The documents that task ``rank`` of a pipeline left."""
        return read_documents(self._folder(pipeline, rank))

    def _write(self, pipeline: str, rank: int, items: Iterable[Item], counts: Counts) -> None:
        folder = self._folder(pipeline, rank)
        folder.mkdir(parents=True, exist_ok=True)
        with DocumentWriter(folder, pipeline) as writer:
            for document, split in items:
                writer.append(document, split)
        self._write_counts(pipeline, rank, counts)

    def _write_counts(self, pipeline: str, rank: int, counts: Counts) -> None:
        file = self.work / "counts" / pipeline / f"{rank:05d}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(counts.as_dict()), encoding="utf-8")

    def _folder(self, pipeline: str, rank: int) -> Path:
        return self.work / "parts" / pipeline / f"{rank:05d}"
