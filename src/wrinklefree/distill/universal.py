"""Universal logit distillation (ULD, arXiv 2402.12030): between models of different vocabularies.

Of two distributions over different tokens only their shapes can be compared: probabilities in
order of size, the smaller vocabulary filled up with zeros. They speak of the same next piece of
text where a token of both tokenizers begins at the same byte.

Shapes: N tokens, V and U vocabularies of teacher and student.
"""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from wrinklefree.tokens.tokenizer import begin_of_text, end_of_text_of, load_tokenizer, token_bytes


def universal_distance(teacher_NV: Tensor, student_NU: Tensor, temperature: float) -> Tensor:
    """The sum of absolute differences of sorted probabilities, [N], in float32 or larger.

    Twice the total variation between the shapes: 0 to 2, and no nats.
    """
    dtype = torch.promote_types(student_NU.dtype, torch.float32)
    ordered = [
        (logits.to(dtype) / temperature).softmax(-1).sort(-1, descending=True).values
        for logits in (teacher_NV, student_NU)
    ]
    width = max(values.shape[-1] for values in ordered)
    padded = [functional.pad(values, (0, width - values.shape[-1])) for values in ordered]
    return (padded[0] - padded[1]).abs().sum(-1)


class Spelling:
    """The tokenizer of a model folder, and how many bytes each of its tokens stands for."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.end_of_text_id = end_of_text_of(self.tokenizer, folder)
        self._begin = begin_of_text(self.tokenizer)
        self._bytes_V = token_bytes(self.tokenizer).tolist()

    def ids_of(self, text: str) -> list[int]:
        """Tokens of a text from its beginning on, without the end of text."""
        return [*self._begin, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def text_of(self, ids: list[int]) -> str | None:
        """What the ids say; None where they begin or end within a character."""
        text = self.tokenizer.decode(ids)
        return text if len(text.encode()) == sum(self._bytes_V[id] for id in ids) else None

    def is_text(self, id: int) -> bool:
        """Whether a token stands for any bytes: no special one does."""
        return self._bytes_V[id] > 0

    def starts(self, ids: list[int]) -> list[int]:
        """Number of the byte at which each token begins."""
        return list(accumulate((self._bytes_V[id] for id in ids[:-1]), initial=0)) if ids else []


def aligned(ours: Spelling, theirs: Spelling, ids: list[int]) -> tuple[list[int], dict[int, int]]:
    """A piece of a document in the other tokens, and which of those begin where ours do.

    Returns
    -------
    ids : in the other tokens, with the end of text if the piece has it; empty where it is cut
        within a character, or where the other tokens spell it otherwise (a tokenizer that
        normalizes text, or adds a space before it).
    begin : by number of a token of ours, that of the other one; none for the first, which nothing
        predicts.
    """
    ends = ids[-1:] == [ours.end_of_text_id]
    body = ids[:-1] if ends else ids
    if not (text := ours.text_of(body)):
        return [], {}
    other = theirs.ids_of(text)
    if theirs.text_of(other) != text:
        return [], {}
    if ends:
        other.append(theirs.end_of_text_id)
    begin = {start: number for number, start in enumerate(theirs.starts(other))}
    asked = {
        number: start
        for number, start in enumerate(ours.starts(ids))
        if number and (ours.is_text(ids[number]) or number == len(body))
    }
    return other, {number: begin[start] for number, start in asked.items() if start in begin}
