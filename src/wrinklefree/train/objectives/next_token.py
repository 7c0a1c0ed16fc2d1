"""The next token: nothing is hidden. Shapes: as in ``question``."""

from __future__ import annotations

import torch

from wrinklefree.mixture.batch import Batch, LabelledBatch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.train.objectives.question import Prepared, Question


class NextToken:
    """Every token with a predecessor in its document is asked for; of labelled rows, the label.

    What looks at all clean tokens looks at all of a labelled row, which counts as its label does.
    """

    mask_token_id = None

    def prepare(self, batch: Batch, step: int) -> Prepared:
        """Find the supervised tokens; nothing here is random."""
        return Prepared(batch, batch.supervised_BT)

    def denominator(self, prepared: Prepared) -> float:
        """Supervised tokens."""
        return float(prepared.supervised_BT.sum())

    def question(self, prepared: Prepared) -> Question:
        """Each token is asked for at the one before it."""
        batch, supervised_BT = prepared.batch, prepared.supervised_BT
        clean_weight_BT = clean_BT = batch.has_predecessor_BT
        if isinstance(batch, LabelledBatch):
            share_B1 = supervised_BT.sum(1, keepdim=True) / clean_BT.sum(1, keepdim=True)
            clean_weight_BT = clean_BT * share_B1
        row_N, position_N = supervised_BT.nonzero(as_tuple=True)
        return Question(
            tokens_RS=batch.tokens_BT,
            positions_RS=batch.positions_BT,
            mask=causal_document_mask(batch.document_ids_BT),
            asking_row_N=row_N,
            asking_position_N=position_N - 1,
            row_N=row_N,
            position_N=position_N,
            target_N=batch.tokens_BT[supervised_BT],
            weight_N=torch.ones(len(row_N), device=row_N.device),
            clean_weight_BT=clean_weight_BT,
            piece_BT=batch.document_ids_BT,
            clean_start=0,
            mask_token_id=self.mask_token_id,
        )
