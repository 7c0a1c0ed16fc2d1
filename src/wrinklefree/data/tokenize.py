"""``tokenize``: the documents of one source as token files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from wrinklefree.data.documents import SPLITS, read_domain, read_texts
from wrinklefree.data.progress import progress
from wrinklefree.data.shards import TokenWriter
from wrinklefree.data.tokenizer import end_of_text_id, load_tokenizer, vocabulary_size

BATCH_CHARACTERS = 1 << 21


def tokenize_source(raw: Path, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Encode the fetched folder ``raw`` with the tokenizer of folder ``tokenizer``.

    Every document ends in the tokenizer's end of text, which text itself can never produce: special
    tokens written out in a document are encoded as ordinary characters. Memory holds one batch.
    Facts: tokens and documents per split, bytes per token over both.
    """
    encoder = load_tokenizer(tokenizer)
    writer = TokenWriter(
        folder,
        domain=read_domain(raw),
        vocabulary_size=vocabulary_size(tokenizer),
        end_of_text_id=end_of_text_id(tokenizer),
    )
    size = 0
    for split in SPLITS:
        texts = progress(read_texts(raw, split), f"tokenize {raw.name} {split}", "documents")
        for batch in _batches(texts):
            size += sum(len(text.encode()) for text in batch)
            writer.append(split, _encode(encoder, batch))
    counts = writer.close()
    tokens = sum(split["tokens"] for split in counts.values())
    documents = sum(split["documents"] for split in counts.values())
    return {
        "tokens": {split: counts[split]["tokens"] for split in SPLITS},
        "documents": {split: counts[split]["documents"] for split in SPLITS},
        # The ends of text stand for no bytes, so they don't count as tokens here.
        "bytes_per_token": size / max(tokens - documents, 1),
    }


def _encode(encoder: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [e.ids for e in encoder.encode_batch_fast(texts, add_special_tokens=False)]


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
