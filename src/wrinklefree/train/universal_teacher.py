"""A teacher with another tokenizer (``distill.universal``).

Shapes: as in ``objectives.question``; L tokens of the longest row in the teacher's own tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wrinklefree.distill.settings import Direction
from wrinklefree.distill.universal import Spelling, aligned, universal_distance
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import hidden_states, logits_of, require_positions
from wrinklefree.train.objectives.question import Question


@dataclass(frozen=True)
class UniversalLesson:
    """The teacher's reading of the text of a micro-batch."""

    teacher: PreTrainedModel
    batch: Batch
    hidden_BLD: Tensor
    asking_BT: Tensor
    """int64: where in ``hidden_BLD`` what begins at the same byte is predicted; -1: nothing."""

    def divergence_N(
        self,
        student_NV: Tensor,
        question: Question,
        *,
        temperature: float,
        temperature_squared: bool,
        direction: Direction,
    ) -> Tensor:
        """How far the student's distribution is from the teacher's in shape; 0 where none is.

        The distance has no direction.
        """
        at_N = self.asking_BT[question.row_N, question.position_N]
        found_N = at_N >= 0
        with torch.no_grad():
            hidden_ND = self.hidden_BLD[question.row_N[found_N], at_N[found_N]]
            teacher_NU = logits_of(self.teacher, hidden_ND)
        distance_N = universal_distance(teacher_NU, student_NV[found_N], temperature)
        factor = temperature**2 if temperature_squared else 1.0
        nothing_N = distance_N.new_zeros(len(found_N))
        return nothing_N.masked_scatter(found_N, factor * distance_N)


class UniversalTeacher:
    """Reads the same text in its own tokens; frozen, and on the student's device."""

    def __init__(self, model: PreTrainedModel, theirs: Spelling, ours: Spelling) -> None:
        self.model = model.eval().requires_grad_(False)
        self._theirs, self._ours = theirs, ours

    def check(self, student: PreTrainedModel, mask_token_id: int | None) -> None:
        """Any vocabulary will do."""

    @torch.no_grad()
    def read(self, batch: Batch, piece_BT: Tensor, looks: Mapping[str, Any]) -> UniversalLesson:
        """Write the rows in the other tokens, and read them.

        Raises UserError for a document of a row with more of these than the teacher has positions.
        """
        assert not looks, "the settings refuse terms that look inside"
        rows = [
            self._translated(tokens, pieces)
            for tokens, pieces in zip(batch.tokens_BT.tolist(), piece_BT.tolist(), strict=True)
        ]
        longest = max(1, *(len(row.tokens) for row in rows))
        last = max(position for row in rows for position in (0, *row.positions))
        require_positions(self.model, last + 1, "teacher")
        padded = [
            (
                row.tokens + [self._theirs.end_of_text_id] * (longest - len(row.tokens)),
                row.positions + [0] * (longest - len(row.tokens)),
                row.pieces + [-1] * (longest - len(row.tokens)),
                row.asking,
            )
            for row in rows
        ]
        tokens_BL, positions_BL, pieces_BL, asking_BT = (
            torch.tensor(list(column), device=piece_BT.device)
            for column in zip(*padded, strict=True)
        )
        mask = causal_document_mask(pieces_BL)
        hidden_BLD = hidden_states(self.model, tokens_BL, positions_BL, mask)
        return UniversalLesson(self.model, batch, hidden_BLD, asking_BT)

    def _translated(self, tokens: list[int], pieces: list[int]) -> _Row:
        row = _Row([], [], [], [-1] * len(tokens))
        start = 0
        while start < len(tokens):
            end = start
            while end < len(tokens) and pieces[end] == pieces[start]:
                end += 1
            if pieces[start] >= 0:
                ids, begin = aligned(self._ours, self._theirs, tokens[start:end])
                for number, other in begin.items():
                    if other:
                        row.asking[start + number] = len(row.tokens) + other - 1
                row.tokens.extend(ids)
                row.positions.extend(range(len(ids)))
                row.pieces.extend([pieces[start]] * len(ids))
            start = end
        return row


@dataclass
class _Row:
    """A row in the teacher's tokens, and where it predicts what the student's tokens begin."""

    tokens: list[int]
    positions: list[int]
    pieces: list[int]
    asking: list[int]
