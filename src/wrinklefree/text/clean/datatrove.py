"""The engine ``datatrove``: the same steps as pipelines of tasks, here or on a Slurm cluster.

Tasks share the documents of a source by row groups, in order. What has to be known of all
documents (which digests repeat, which n-grams are templates) is gathered between pipelines in
files, by buckets of hashes, so that no task holds more than its share.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WhitespaceTokenizer

from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.datatrove_run import Pipeline, run_pipelines
from wrinklefree.text.clean.datatrove_steps import Tasks
from wrinklefree.text.clean.items import Item
from wrinklefree.text.clean.repeats import find_repeats, save_array
from wrinklefree.text.clean.settings import DatatroveEngine
from wrinklefree.text.documents.settings import CleaningSteps, Source


def clean_with_datatrove(
    steps: CleaningSteps,
    engine: DatatroveEngine,
    references: dict[str, Source],
    name: str,
    raw: dict[str, Path],
    judges_FH: np.ndarray | None,
    work: Path,
    cache: Path,
    counts: Counts,
) -> Iterator[Item]:
    """The documents of ``raw[name]`` that the steps leave, in order; see ``clean_locally``.

    Everything between lies in ``work``, which all machines must see; tasks that are complete there
    are not run again. Memory of a task: about 100 bytes for each digest and 40 for each evaluation
    n-gram of its share, and a few megabytes of text.

    Raises UserError where a task on a cluster failed.
    """
    folders = {key: path.resolve() for key, path in raw.items()}
    task = Tasks(steps, references, name, folders, work.resolve(), cache.resolve())
    if judges_FH is not None:
        save_array(task.judges, judges_FH)
    pipelines = build_pipelines(task, engine.tasks)
    run_pipelines(pipelines, engine, task.work, name)
    for file in sorted((work / "counts").glob("*/*.json")):
        counts.add(json.loads(file.read_text(encoding="utf-8")))
    for rank in range(engine.tasks):
        yield from task.part(pipelines[-1].name, rank)


def build_pipelines(task: Tasks, tasks: int) -> list[Pipeline]:
    """What to run, in this order; the last one writes the parts of the result."""
    steps = task.steps
    pipelines = []
    if steps.decontamination.enabled:
        pipelines.append(Pipeline("evaluation", [task.find_evaluation], 1))
    if steps.deduplicate_documents:
        find = partial(find_repeats, task.work / "repeated_documents")
        pipelines.append(Pipeline("digests_of_documents", [task.digest_documents], tasks))
        pipelines.append(Pipeline("repeated_documents", [find], tasks))
    last = "filtered"
    pipelines.append(Pipeline(last, [task.filter], tasks))
    if steps.paragraphs.deduplicate:
        find = partial(find_repeats, task.work / "repeated_paragraphs")
        pipelines.append(Pipeline("repeated_paragraphs", [find], tasks))
        drop = partial(task.drop, last, last := "without_paragraphs", task.without_paragraphs)
        pipelines.append(Pipeline(last, [drop], tasks))
    if steps.near_duplicates.enabled:
        pipelines += _minhash(task, tasks, last)
        drop = partial(task.drop, last, last := "distinct", task.without_near_duplicates)
        pipelines.append(Pipeline(last, [drop], tasks))
    if steps.decontamination.enabled:
        count = partial(task.count_ngrams, last)
        pipelines.append(Pipeline("documents_with_ngrams", [count], tasks))
        pipelines.append(Pipeline("convicting_ngrams", [task.find_convicting], 1))
        drop = partial(task.drop, last, last := "cleaned", task.without_contamination)
        pipelines.append(Pipeline(last, [drop], tasks))
    return pipelines


class SpaceTokenizer(WhitespaceTokenizer):
    """Words are what stands between spaces; datatrove's own need models that are downloaded."""

    def word_tokenize(self, text: str) -> list[str]:
        """Words of a text whose punctuation datatrove has removed."""
        return text.split()


def _minhash(task: Tasks, tasks: int, before: str) -> list[Pipeline]:
    """Signatures, pairs that share a bucket, and clusters of pairs."""
    settings = task.steps.near_duplicates
    config = MinhashConfig(
        n_grams=settings.ngram,
        num_buckets=settings.buckets,
        hashes_per_bucket=settings.hashes_per_bucket,
        # Of the two that datatrove has the one that is always there.
        hash_config=HashConfig(hash_fc="sha1"),
    )
    signatures, pairs, clusters = (str(task.work / n) for n in ("signatures", "pairs", "clusters"))
    sign = MinhashDedupSignature(signatures, config, language=SpaceTokenizer())  # pyright: ignore[reportArgumentType]
    bucket = MinhashDedupBuckets(signatures, pairs, config=config)
    cluster = MinhashDedupCluster(pairs, clusters, config)
    return [
        Pipeline("signatures", [partial(task.training_texts, before), sign], tasks),
        Pipeline("pairs", [bucket], settings.buckets),
        Pipeline("clusters", [cluster], 1),
    ]
