"""Reading byte-level BPE tokenizers, ours and those that come with a base model.

Shape: V ids of the vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from wrinklefree.errors import UserError

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
MASK = "|<MASK>|"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"


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


def begin_of_text(tokenizer: Tokenizer) -> list[int]:
    """Ids that the tokenizer puts before every text: one where its base has read so (Llama 3)."""
    text = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    return whole[: next(n for n in range(len(whole)) if whole[n : n + len(text)] == text)]


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text from its beginning on, without the end of text."""
    plain: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return begin_of_text(tokenizer) + plain


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
