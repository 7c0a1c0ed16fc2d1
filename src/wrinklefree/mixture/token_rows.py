"""Rows of tokens that are in memory already, for trainings outside of the pipeline.

Shapes: N rows, B rows of a batch, T tokens of a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.mixture.order import keyed_permutation

DOMAIN = "tokens"


class TokenRows:
    """Rows of one document each, in an order that is a function of ``seed`` and the epoch.

    Parameters
    ----------
    tokens_NT : token ids, int64.

    Raises
    ------
    UserError : there are no rows, or no row has a token to predict.
    """

    def __init__(self, tokens_NT: Tensor, *, seed: int) -> None:
        if tokens_NT.ndim != 2 or not len(tokens_NT) or tokens_NT.shape[1] < 2:
            raise UserError(
                f"tokens have shape {list(tokens_NT.shape)}; expected [rows, tokens of a row], with"
                " a row or more of two tokens or more"
            )
        self._tokens_NT = tokens_NT.long()
        self._seed = seed
        self._order: tuple[int, np.ndarray] | None = None
        self.domains = [DOMAIN]
        self.sequence_length = tokens_NT.shape[1]
        self.vocabulary_size = int(tokens_NT.max()) + 1

    def batch(self, step: int, micro_batch: int, *, batch_size: int, micro_batches: int) -> Batch:
        """Micro-batch ``micro_batch`` of the ``micro_batches`` of a step: a pure function."""
        first = (step * micro_batches + micro_batch) * batch_size
        sample_B = torch.arange(first, first + batch_size)
        tokens_BT = torch.stack([self._tokens_NT[self._row(int(sample))] for sample in sample_B])
        position_BT = torch.arange(self.sequence_length).expand_as(tokens_BT)
        document_BT, domain_B = torch.zeros_like(tokens_BT), torch.zeros_like(sample_B)
        return Batch(
            tokens_BT, document_BT, position_BT, document_BT, position_BT, domain_B, sample_B
        )

    def weights_at(self, sample: int) -> dict[str, float]:
        """All of the one domain."""
        return {DOMAIN: 1.0}

    def _row(self, sample: int) -> int:
        epoch, place = divmod(sample, len(self._tokens_NT))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, keyed_permutation(len(self._tokens_NT), self._seed, epoch)
        return int(self._order[1][place])
