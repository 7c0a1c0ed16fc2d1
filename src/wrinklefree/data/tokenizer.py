"""Byte-level BPE tokenizers: training one, and reading those that come with a base model.

Shape: V ids of the vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from wrinklefree.config.tokens import BpeTokenizerSettings
from wrinklefree.data.documents import read_texts
from wrinklefree.errors import UserError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
MASK = "|<MASK>|"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
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


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, set to encode plain text: no truncation, padding or special ids.

    Raises UserError if there is none or it is not byte-level.
    """
    path = folder / TOKENIZER_FILE
    tokenizer = read_tokenizer(folder)
    serialized = json.loads(path.read_text(encoding="utf-8"))
    if not any(_uses_byte_level(serialized.get(key)) for key in ("pre_tokenizer", "decoder")):
        raise UserError(
            f"{path} is not a byte-level tokenizer; bytes per token are defined for byte-level BPE"
            " only (GPT-2, Llama 3, Qwen, SmolLM2)"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder as it was saved, of any kind.

    Raises UserError if there is none, it can't be read or it has no tokens.
    """
    path = folder / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for every kind of bad file
        raise UserError(
            f"{path} is not a readable tokenizer ({error}); expected a folder that"
            " transformers.AutoTokenizer can load, with a fast tokenizer: put back the file that"
            " came with the model"
        ) from error
    if not tokenizer.get_vocab_size(with_added_tokens=True):
        raise UserError(
            f"{path} is a tokenizer without a token; put back the file that came with the model"
        )
    return tokenizer


def _uses_byte_level(part: Any) -> bool:
    if isinstance(part, dict):
        return part.get("type") == "ByteLevel" or any(map(_uses_byte_level, part.values()))
    return isinstance(part, list) and any(map(_uses_byte_level, part))


def end_of_text_id(folder: Path) -> int:
    """Id of the folder's ``eos_token``, the last token of every document.

    Raises UserError if none is named or it is not a special token of the vocabulary: text could
    then contain it.
    """
    return end_of_text_of(load_tokenizer(folder), folder)


def end_of_text_of(tokenizer: Tokenizer, folder: Path) -> int:
    """``end_of_text_id`` where the tokenizer of ``folder`` is loaded already."""
    content: Any = None
    for name in (CONFIG_FILE, "special_tokens_map.json"):
        path = folder / name
        if content is None and path.is_file():
            content = _read_config(path).get("eos_token")
    if isinstance(content, dict):
        content = content.get("content")
    return require_end_of_text(tokenizer, content, str(folder / CONFIG_FILE))


def require_end_of_text(tokenizer: Tokenizer, token: Any, where: str) -> int:
    """Id of ``token``; UserError, that begins with ``where``, unless it is a special token."""
    special = {
        added.content: id
        for id, added in tokenizer.get_added_tokens_decoder().items()
        if added.special
    }
    if not isinstance(token, str) or token not in special:
        raise UserError(
            f"{where} has eos_token {token!r}, which is not a special token of {TOKENIZER_FILE};"
            " name the one that ends a text. Its special tokens:"
            f" {', '.join(sorted(special)) or 'none'}"
        )
    return special[token]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}, expected a mapping")
    except ValueError as error:
        raise UserError(
            f"{path} is no JSON of a tokenizer ({error}); put back the file that came with the"
            " tokenizer"
        ) from error
    return config


def vocabulary_size(folder: Path) -> int:
    """V: the largest token id plus one."""
    return vocabulary_size_of(load_tokenizer(folder))


def vocabulary_size_of(tokenizer: Tokenizer) -> int:
    """``vocabulary_size`` where the tokenizer is loaded already."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of UTF-8 that each id stands for, int32 [V]; 0 for special tokens and unused ids."""
    token_bytes_V = np.zeros(vocabulary_size_of(tokenizer), dtype=np.int32)
    # Each character of a byte-level token is one byte.
    for token, id in tokenizer.get_vocab(with_added_tokens=False).items():
        token_bytes_V[id] = len(token)
    for id, token in tokenizer.get_added_tokens_decoder().items():
        token_bytes_V[id] = 0 if token.special else len(token.content.encode())
    return token_bytes_V
