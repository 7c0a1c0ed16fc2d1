"""Next-token prediction inside documents.

Shapes: B rows, T tokens of a row, N supervised tokens, D hidden size.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.train.objectives.objective import LossOutput, Prepared
from wrinklefree.train.objectives.rows import hidden_states, logits_of, sum_by_row


def predecessors_of(hidden_BTD: Tensor, supervised_BT: Tensor) -> Tensor:
    """Rows that next-token prediction reads the supervised tokens off, [N, D], in reading order."""
    row_N, position_N = supervised_BT.nonzero(as_tuple=True)
    return hidden_BTD[row_N, position_N - 1]


class CausalLanguageModel:
    """Mean cross-entropy of the next token, over all tokens that have a predecessor."""

    def prepare(self, batch: Batch, step: int) -> Prepared:
        """Find the supervised tokens; nothing here is random."""
        return Prepared(batch, batch.has_predecessor_BT)

    def denominator(self, prepared: Prepared) -> float:
        """Supervised tokens."""
        return float(prepared.supervised_BT.sum())

    def loss(self, model: PreTrainedModel, prepared: Prepared, denominator: float) -> LossOutput:
        """Summed cross-entropy over ``denominator``."""
        batch, supervised_BT = prepared.batch, prepared.supervised_BT
        hidden_BTD = hidden_states(
            model,
            batch.tokens_BT,
            batch.positions_BT,
            causal_document_mask(batch.document_ids_BT),
        )
        logits_NV = logits_of(model, predecessors_of(hidden_BTD, supervised_BT))
        loss_N = functional.cross_entropy(
            logits_NV, batch.tokens_BT[supervised_BT], reduction="none"
        )
        row_N = supervised_BT.nonzero(as_tuple=True)[0]
        return LossOutput(
            loss=loss_N.sum() / denominator,
            row_loss_B=sum_by_row(loss_N, row_N, len(supervised_BT)),
            row_tokens_B=supervised_BT.sum(1),
        )
