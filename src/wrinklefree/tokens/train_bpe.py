"""Training a byte-level BPE on the text of all sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from wrinklefree.errors import UserError
from wrinklefree.text.documents.parquet import read_texts
from wrinklefree.tokens.settings import BpeTokenizerSettings
from wrinklefree.tokens.tokenizer import CONFIG_FILE, END_OF_TEXT, MASK, PADDING, TOKENIZER_FILE

CHUNK_CHARACTERS = 65_536


def train_tokenizer(
    settings: BpeTokenizerSettings, documents: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """Train a byte-level BPE on the training splits and save it for ``AutoTokenizer``.

    ``documents``: cleaned folders by source name; read in the order of the names. Digits are
    separate tokens, every byte is in the vocabulary, so every text can be encoded and decoded
    exactly. Has exactly ``vocabulary_size`` ids, the special tokens first. Nothing is random: the
    same text gives the same bytes. Raises UserError where the text is too small for the size.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size,
        special_tokens=[END_OF_TEXT, PADDING, MASK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    read: dict[str, int] = {}
    tokenizer.train_from_iterator(_training_texts(settings, documents, read), trainer)
    size = tokenizer.get_vocab_size()
    if size != settings.vocabulary_size:
        raise UserError(
            f"the training text has only enough different pieces for {size} token ids,"
            f" tokenizer.vocabulary_size is {settings.vocabulary_size}; lower it, raise"
            " tokenizer.max_megabytes_per_source or add sources"
        )
    tokenizer.save(str(folder / TOKENIZER_FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "pad_token": PADDING,
        "extra_special_tokens": [MASK],
    }
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / CONFIG_FILE).write_text(f"{text}\n", encoding="utf-8")
    return {"vocabulary_size": size, "bytes_read": read}


def _training_texts(
    settings: BpeTokenizerSettings, documents: dict[str, Path], read: dict[str, int]
) -> Iterator[str]:
    """At most the set number of megabytes of each source, spread evenly over the whole of it."""
    limit = settings.max_megabytes_per_source * 1_000_000
    for name in sorted(documents):
        total = sum(len(text.encode()) for text in read_texts(documents[name], "train"))
        seen = read[name] = 0
        for text in read_texts(documents[name], "train"):
            for start in range(0, len(text), CHUNK_CHARACTERS):
                chunk = text[start : start + CHUNK_CHARACTERS]
                size = len(chunk.encode())
                seen += size
                if (read[name] + size) * total <= min(limit, total) * seen:
                    read[name] += size
                    yield chunk
