"""The token that stands for a masked one in block diffusion.

Shapes: V rows of the embedding, D hidden size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.models.folder import TOKENIZER, copy_tokenizer, write_json
from wrinklefree.tokens.tokenizer import read_tokenizer

MASK_TOKEN = "|<MASK>|"
RESERVED_NAMES = (
    MASK_TOKEN,
    "<|mask|>",
    "<|MASK|>",
    "<|mdm_mask|>",
    "<mask>",
    "[MASK]",
    "<|reserved_special_token_0|>",
    "<unused0>",
)
"""Names of special tokens that serve as mask if a tokenizer has one, in this order: Fast-dLLM v2,
Dream, SDAR, LLaDA, Gemma, BERT; then the placeholders that Llama 3 and Gemma keep free."""

MaskInit = Literal["mean", "random", "zero"]


def add_mask_token(
    model: PreTrainedModel, tokenizer_folder: Path, folder: Path, init: MaskInit, seed: int
) -> int:
    """Give ``model`` a mask token, in place, and write the tokenizer that knows it to ``folder``.

    A reserved special token is used if the tokenizer has one, else ``|<MASK>|`` is added. The
    embedding grows only if the id lies outside of it, and never shrinks.

    Parameters
    ----------
    init : the token's row in the embedding, and in the head if that is not tied. ``mean``: of the
        rows of all other tokens. ``random``: normal with the model's ``initializer_range``.
    seed : for ``random``.

    Returns
    -------
    The id of the mask token.
    """
    copy_tokenizer(tokenizer_folder, folder)
    tokenizer = read_tokenizer(folder)
    other_ids = set(tokenizer.get_vocab(with_added_tokens=True).values())
    name = _mask_name(tokenizer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False)])
    mask_token_id = tokenizer.token_to_id(name)
    assert mask_token_id is not None
    tokenizer.save(str(folder / TOKENIZER))
    _declare_mask(folder / "tokenizer_config.json", name)

    _grow_embedding(model, mask_token_id + 1)
    rows = torch.tensor(sorted(other_ids - {mask_token_id}))
    generator = torch.Generator().manual_seed(seed)
    deviation = model.config.initializer_range
    assert deviation is not None
    for matrix_VD in _token_matrices(model):
        with torch.no_grad():
            matrix_VD[mask_token_id] = _initial_row(matrix_VD, rows, init, deviation, generator)
    return mask_token_id


def _mask_name(tokenizer: Tokenizer) -> str:
    special = {
        token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
    }
    return next((name for name in RESERVED_NAMES if name in special), MASK_TOKEN)


def _declare_mask(path: Path, name: str) -> None:
    content: dict[str, Any] = {}
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, "mask_token": name})


def _token_matrices(model: PreTrainedModel) -> list[Tensor]:
    """The embedding, and the head's matrix if it is another one; both [V, D]."""
    embedding, head = _embedding_and_head(model)
    tied = head.weight is embedding.weight
    return [embedding.weight] if tied else [embedding.weight, head.weight]


def _embedding_and_head(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)
    return embedding, head


def _grow_embedding(model: PreTrainedModel, vocabulary_size: int) -> None:
    if vocabulary_size <= model.config.vocab_size:
        return
    embedding, head = _embedding_and_head(model)
    for matrix_VD in _token_matrices(model):
        added = vocabulary_size - matrix_VD.shape[0]
        grown_VD = nn.Parameter(
            torch.cat([matrix_VD.detach(), matrix_VD.new_zeros(added, matrix_VD.shape[1])])
        )
        for module in (embedding, head):
            if module.weight is matrix_VD:
                module.weight = grown_VD
    embedding.num_embeddings = head.out_features = vocabulary_size
    model.config.vocab_size = vocabulary_size
    for module in (model, model.get_decoder()):
        vars(module)["vocab_size"] = vocabulary_size


def _initial_row(
    matrix_VD: Tensor, rows: Tensor, init: MaskInit, deviation: float, generator: torch.Generator
) -> Tensor:
    if init == "mean":
        return matrix_VD[rows.to(matrix_VD.device)].mean(0, dtype=torch.float64).to(matrix_VD.dtype)
    row_D = torch.zeros(matrix_VD.shape[1])
    if init == "random":
        row_D.normal_(0.0, deviation, generator=generator)
    return row_D.to(matrix_VD)
