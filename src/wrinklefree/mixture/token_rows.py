"""Rows of tokens that are in memory already, for trainings outside of the pipeline.

Shapes: N rows, B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch, LabelledBatch
from wrinklefree.mixture.order import keyed_permutation

DOMAIN = "tokens"


class TokenRows:
    """Rows of one document each, in an order that is a function of ``seed`` and the epoch.

    Parameters
    ----------
    tokens_NT : token ids, int64.
    length_N : tokens of each row, what follows is padding; whole rows if not given.
    label_start_N : where the label of each row begins, the last thing in it; the model learns to
        predict nothing else. All of the row if not given.

    Raises
    ------
    UserError : there are no rows, or no row has a token to predict.
    """

    def __init__(
        self,
        tokens_NT: Tensor,
        *,
        seed: int,
        length_N: Tensor | None = None,
        label_start_N: Tensor | None = None,
    ) -> None:
        if tokens_NT.ndim != 2 or not len(tokens_NT) or tokens_NT.shape[1] < 2:
            raise UserError(
                f"tokens have shape {list(tokens_NT.shape)}; expected [rows, tokens of a row], with"
                " a row or more of two tokens or more"
            )
        self._tokens_NT = tokens_NT.long()
        self._length_N = torch.full((len(tokens_NT),), tokens_NT.shape[1])
        if length_N is not None:
            self._length_N = length_N
        self._label_start_N = label_start_N
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None
        self.domains = [DOMAIN]
        self.sequence_length = tokens_NT.shape[1]
        self.vocabulary_size = int(tokens_NT.max()) + 1

    def batch(self, step: int, micro_batch: int, *, batch_size: int, micro_batches: int) -> Batch:
        """Micro-batch ``micro_batch`` of the ``micro_batches`` of a step: a pure function."""
        first = (step * micro_batches + micro_batch) * batch_size
        sample_B = torch.arange(first, first + batch_size)
        row_B = torch.tensor([self._row(int(sample)) for sample in sample_B])
        tokens_BT = self._tokens_NT[row_B]
        position_BT = torch.arange(self.sequence_length).expand_as(tokens_BT)
        padding_BT = position_BT >= self._length_N[row_B, None]
        document_BT = torch.zeros_like(tokens_BT).masked_fill(padding_BT, -1)
        source_BT = position_BT.masked_fill(padding_BT, -1)
        domain_B = torch.zeros_like(sample_B)
        rows = (tokens_BT, document_BT, position_BT, document_BT, source_BT, domain_B, sample_B)
        if self._label_start_N is None:
            return Batch(*rows)
        label_BT = ~padding_BT & (position_BT >= self._label_start_N[row_B, None])
        return LabelledBatch(*rows, label_BT)

    def weights_at(self, sample: int) -> dict[str, float]:
        """All of the one domain."""
        return {DOMAIN: 1.0}

    def _row(self, sample: int) -> int:
        epoch, place = divmod(sample, len(self._tokens_NT))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, keyed_permutation(len(self._tokens_NT), self._seed, epoch)
        return int(self._order[1][place])
