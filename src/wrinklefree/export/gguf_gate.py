"""A GGUF file must hold our codes, and llama.cpp must compute with it what our model computes.

llama.cpp quantizes activations too, but in blocks, where our model does for a whole token. So there
are two comparisons: of a file in float32 with our model whose activations are left alone, where
nothing but the order of sums differs; and of the packed file with our model as it is. Allowed is
what was seen where no model amplifies anything, and more for a model that itself answers as much:
to rounding noise on its embeddings, and to its own quantization of activations. Logits don't see
everything (a wrong scale of ``up`` is cancelled by SubLN), so every tensor is read back as well.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from wrinklefree.export.blocks import BlockType, rounded
from wrinklefree.export.gate import AMPLIFICATION_MARGIN, GREEDY_TOKENS
from wrinklefree.export.gguf import gguf_name, tensors_of
from wrinklefree.export.llama_cpp import LlamaCpp, decoded, opened, tensors_in
from wrinklefree.export.reference import (
    Reference,
    distances,
    largest_difference,
    logits_of_rows,
    relative,
)
from wrinklefree.tokens.tokenizer import load_tokenizer, text_ids

FLOAT_TOLERANCE = 2e-4
"""Bound of the relative difference of logits (RMS over RMS) with a file in float32."""
PACKED_TOLERANCE = 0.03
DIVERGENCE_TOLERANCE = 1e-3
"""Bound of the mean KL divergence (nats per token) from our model to the packed file."""
QUANTIZATION_MARGIN = 2.0
"""How many times the effect of its own quantization of activations a packed file may be off."""
TEXTS = (
    "In 1984, 12345 people -- 3.14% -- lived there.",
    "def f(x):\n\n    return  x\t+ 1  # naïve café",
    "«Ça va?» 你好, мир! 🙂 it's we'll",
    " \n leading and trailing  ",
)
"""What tokenizers split differently, if they do."""


def check_float32(path: Path, reference: Reference) -> dict[str, float]:
    """Logits of the float32 file, and how it goes on from the first half of every row.

    Returns
    -------
    facts : ``float32_relative_difference`` of the logits; ``float32_greedy_tokens`` compared.

    Raises
    ------
    RuntimeError : logits are off by more than is allowed, or llama.cpp chooses a token that is less
        likely in ours by more than they are.
    """
    with opened(path, len(reference.rows[0]) + GREEDY_TOKENS) as theirs:
        logits = _theirs(theirs, reference)
        found = relative(logits, reference.plain)
        allowed = max(FLOAT_TOLERANCE, AMPLIFICATION_MARGIN * reference.noise)
        _require(f"{path}: logits in llama.cpp", found, allowed)
        largest = largest_difference(logits, reference.plain)
        _check_greedy(path, theirs, reference.plain_model, reference.rows, largest)
    return {
        "float32_relative_difference": found,
        "float32_greedy_tokens": len(reference.rows) * GREEDY_TOKENS,
    }


def check_packed(path: Path, reference: Reference) -> dict[str, float]:
    """Logits of the packed file, and how it goes on, as for :func:`check_float32`.

    Returns
    -------
    facts : the ``distances`` of its logits from ours; ``greedy_tokens`` compared, and
        ``greedy_ties``: how many are not the likeliest in ours.

    Raises
    ------
    RuntimeError : logits or their KL divergence are off by more than is allowed, or llama.cpp
        chooses a token that is less likely in ours by more than the logits are off.
    """
    with opened(path, len(reference.rows[0]) + GREEDY_TOKENS) as theirs:
        logits = _theirs(theirs, reference)
        found = distances(reference.quantized, logits)
        allowed = max(PACKED_TOLERANCE, QUANTIZATION_MARGIN * reference.quantization)
        _require(f"{path}: logits in llama.cpp", found["relative_difference"], allowed)
        allowed = QUANTIZATION_MARGIN * reference.quantization_divergence
        _require(f"{path}: the KL divergence", found["kl"], max(DIVERGENCE_TOLERANCE, allowed))
        largest = largest_difference(logits, reference.quantized)
        ties = _check_greedy(path, theirs, reference.model, reference.rows, largest)
    return {**found, "greedy_tokens": len(reference.rows) * GREEDY_TOKENS, "greedy_ties": ties}


def _check_greedy(
    path: Path, theirs: LlamaCpp, model: PreTrainedModel, rows: list[list[int]], largest: float
) -> int:
    """How many tokens that llama.cpp chooses one by one, behind the first half of every row, are
    not the likeliest in ``model``.

    One by one is how they are chosen in use: over the cache, by kernels of their own. At the
    positions whose logits were compared there is nothing to bound: where two likeliest tokens part,
    our margin is below twice the difference there by arithmetic, whatever the fault.
    """
    ties = 0
    for row in rows:
        prompt = row[: (len(row) + 1) // 2]
        new = list(itertools.islice(theirs.greedy(prompt), GREEDY_TOKENS))
        (ours_TV,) = logits_of_rows(model, torch.tensor([prompt + new]))
        before_SV = ours_TV[len(prompt) - 1 : -1]
        gap_S = before_SV.max(-1) - before_SV[np.arange(len(new)), new]
        # Either of two logits may be off by as much.
        if (gap_S > 2 * largest).any():
            step = int((gap_S > 2 * largest).argmax())
            raise RuntimeError(
                f"{path}: greedy token {step} is {new[step]} in llama.cpp and"
                f" {before_SV[step].argmax()} here, by {gap_S[step]:.3g} in the logits, allowed"
                f" {2 * largest:.2g}"
            )
        ties += int((gap_S > 0).sum())
    return ties


def check_tokens(path: Path, tokenizer: Path, rows: list[list[int]]) -> int:
    """How many texts llama.cpp splits as our tokenizer does; RuntimeError for one that it doesn't.

    The texts are those of the rows and :data:`TEXTS`.
    """
    ours = load_tokenizer(tokenizer)
    texts = [*TEXTS, *(ours.decode(row) for row in rows)]
    with opened(path) as theirs:
        for text in texts:
            expected = text_ids(ours, text)
            if (found := theirs.tokens(text)) != expected:
                where = next(
                    (n for n, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b),
                    min(len(found), len(expected)),
                )
                raise RuntimeError(
                    f"{path}: llama.cpp splits {text[:40]!r}… otherwise than our tokenizer, from"
                    f" token {where} on; export.gguf: [] goes without such files"
                )
    return len(texts)


def check_tensors(path: Path, model: PreTrainedModel) -> None:
    """Have llama.cpp decode every tensor; RuntimeError for one that is not ours, to the last bit.

    Ternary ones are codes times a scale, which blocks round to float16.
    """
    written = tensors_in(path)
    for name, values, scale in tensors_of(model):
        kind, raw = written.pop(gguf_name(name))
        found = decoded(kind, raw)
        if scale is not None:
            own = np.float32(scale) if kind == BlockType.F32 else np.float16(scale)
            expected = values.ravel() * np.float32(own)
        else:
            expected = decoded(kind, rounded(values, BlockType(kind)))
        if not np.array_equal(found, expected):
            wrong = int((found != expected).sum())
            raise RuntimeError(f"{path}: {wrong} of {expected.size} values of {name} are not ours")
    if written:
        raise RuntimeError(f"{path}: {', '.join(sorted(written))} are no tensors of ours")


def _theirs(model: LlamaCpp, reference: Reference) -> list[np.ndarray]:
    return [model.logits(row) for row in reference.rows]


def _require(what: str, found: float, allowed: float) -> None:
    if not found <= allowed:
        raise RuntimeError(f"{what} differ from ours by {found:.2g}, allowed {allowed:.2g}")
