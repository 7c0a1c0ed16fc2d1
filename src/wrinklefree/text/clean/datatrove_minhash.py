"""Near duplicates: datatrove's MinHash steps, over the training documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from wrinklefree.text.clean.counts import Counts
from wrinklefree.text.clean.datatrove_steps import (
    Documents,
    Pipeline,
    ReadPart,
    WritePart,
    write_counts,
)
from wrinklefree.text.documents.settings import NearDuplicateSettings


class SpaceTokenizer(WordTokenizer):
    """Words are what stands between spaces; datatrove's own need models that are downloaded."""

    def word_tokenize(self, text: str) -> list[str]:
        """Words of a text whose punctuation datatrove has removed."""
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        """MinHash doesn't ask for sentences."""
        raise NotImplementedError

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """MinHash doesn't ask for spans."""
        raise NotImplementedError


class TrainingDocuments(PipelineStep):
    """The documents of the training split."""

    name = "training split"
    type = "filter"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields them."""
        return (document for document in data if document.metadata["split"] == "train")


class DropNearDuplicates(PipelineStep):
    """datatrove's filter on the training split; held-out documents pass by, in their places."""

    name = "near duplicates"
    type = "filter"

    def __init__(self, clusters: Path, work: Path) -> None:
        super().__init__()
        self.clusters = clusters
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Documents:
        """Yields the documents that stay."""
        counts = Counts()
        passed: list[Any] = []

        def training() -> Documents:
            for document in data:
                passed.append(document)
                if document.metadata["split"] == "train":
                    yield document

        def settled(end: Any) -> Documents:
            """Those before ``end``: held out, or dropped by the filter."""
            while passed and passed[0] is not end:
                document = passed.pop(0)
                if document.metadata["split"] == "train":
                    counts.drop_document("near_duplicates", document.text)
                else:
                    yield document

        for document in MinhashDedupFilter(str(self.clusters)).run(training(), rank, world_size):
            yield from settled(document)
            yield passed.pop(0)
        yield from settled(None)
        write_counts(counts, self.work, "near_duplicates", rank)


def minhash_pipelines(
    settings: NearDuplicateSettings, tasks: int, before: str, name: str, work: Path
) -> list[Pipeline]:
    """Signatures, pairs that share a bucket, clusters of pairs, and the filter (called ``name``).

    ``before``: the pipeline whose documents are read.
    """
    config = MinhashConfig(
        n_grams=settings.ngram,
        num_buckets=settings.buckets,
        hashes_per_bucket=settings.hashes_per_bucket,
        # Of the two that datatrove has the one that is always there.
        hash_config=HashConfig(hash_fc="sha1"),
    )
    signatures, pairs, clusters = (
        work / "near_duplicates" / kind for kind in ("signatures", "pairs", "clusters")
    )
    sign = MinhashDedupSignature(str(signatures), config, language=SpaceTokenizer())  # pyright: ignore[reportArgumentType]
    bucket = MinhashDedupBuckets(str(signatures), str(pairs), config=config)
    cluster = MinhashDedupCluster(str(pairs), str(clusters), config)
    drop = DropNearDuplicates(clusters, work)
    return [
        Pipeline("signatures", [ReadPart(work, before), TrainingDocuments(), sign], tasks),
        Pipeline("pairs", [bucket], settings.buckets),
        Pipeline("clusters", [cluster], 1),
        Pipeline(name, [ReadPart(work, before), drop, WritePart(work, name)], tasks),
    ]
