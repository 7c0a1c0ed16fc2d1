"""One pass over the documents of a source: sizes, digests and a few samples."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wrinklefree.schema.splits import SPLITS
from wrinklefree.text.documents.document import Document
from wrinklefree.text.documents.parquet import read_documents
from wrinklefree.tracking.progress import progress

SAMPLE_CHARACTERS = 600
_WORD = 8


@dataclass(frozen=True)
class Size:
    """How much text."""

    documents: int = 0
    bytes: int = 0
    """In UTF-8."""


@dataclass(frozen=True)
class TextSample:
    """A document of the training split, drawn by the seed."""

    rank: int
    """By which samples are drawn: the smallest are taken. A function of seed and text."""
    id: str
    text: str
    """The beginning."""
    characters: int
    """Length of the whole document."""


@dataclass(frozen=True)
class SourceTexts:
    """The documents of a source that became tokens."""

    sizes: dict[str, Size]
    """By split."""
    digests: dict[str, np.ndarray]
    """uint64 [documents] by split: BLAKE2b of each text."""
    left: Size
    """Documents behind the last one that became tokens, of all splits."""
    samples: list[TextSample]
    """Different training texts, in the order of their ranks."""


def read_source(
    folder: Path, documents: Mapping[str, int], *, samples: int, seed: int
) -> SourceTexts:
    """Read a cleaned folder: sizes and digests of the first ``documents`` of each split.

    Memory holds 8 bytes per document. Equal digests mean equal texts: among a billion different
    documents the chance of one pair with equal digests is 3 %.
    """
    sizes: dict[str, Size] = dict.fromkeys([*SPLITS, "left"], Size())
    digests = {split: array("Q") for split in SPLITS}
    drawn: dict[int, TextSample] = {}
    for document, split in progress(read_documents(folder), f"read {folder.name}", "documents"):
        text = document.text.encode()
        digest = hashlib.blake2b(text, digest_size=_WORD).digest()
        place = split if sizes[split].documents < documents[split] else "left"
        sizes[place] = Size(sizes[place].documents + 1, sizes[place].bytes + len(text))
        if place == "left":
            continue
        digests[split].append(int.from_bytes(digest, "little"))
        if split == "train":
            _draw(drawn, document, digest, samples, seed)
    return SourceTexts(
        sizes={split: sizes[split] for split in SPLITS},
        digests={split: np.array(values, dtype=np.uint64) for split, values in digests.items()},
        left=sizes["left"],
        samples=[drawn[rank] for rank in sorted(drawn)],
    )


def lowest_ranks(samples: list[TextSample], number: int) -> list[TextSample]:
    """The samples that one pass over the documents of several sources would have drawn."""
    different = {sample.rank: sample for sample in reversed(samples)}
    return heapq.nsmallest(number, different.values(), key=lambda sample: sample.rank)


def _draw(
    drawn: dict[int, TextSample], document: Document, digest: bytes, samples: int, seed: int
) -> None:
    key = seed.to_bytes(_WORD, "little")
    rank = int.from_bytes(hashlib.blake2b(digest, key=key, digest_size=_WORD).digest(), "little")
    if rank in drawn or (len(drawn) == samples and rank > max(drawn, default=0)):
        return
    beginning = document.text[:SAMPLE_CHARACTERS]
    drawn[rank] = TextSample(rank, document.id, beginning, len(document.text))
    if len(drawn) > samples:
        del drawn[max(drawn)]
