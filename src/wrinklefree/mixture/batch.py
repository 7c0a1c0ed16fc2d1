"""What a model is given: rows of tokens. Shapes: B rows, T tokens of a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows of documents. All tensors are int64."""

    tokens_BT: Tensor
    """Token ids; padding is end of text."""
    document_ids_BT: Tensor
    """Number of the document piece within the row, -1 on padding."""
    positions_BT: Tensor
    """Position within the document piece, from 0."""
    source_documents_BT: Tensor
    """Number of the document within its domain and split, -1 on padding."""
    source_positions_BT: Tensor
    """Position within that document, -1 on padding; it tells the piece of a long one."""
    domain_B: Tensor
    """Index into the ``domains`` of the data the batch comes from."""
    sample_B: Tensor
    """Training: number of the sample since step 0. Held out: number of the row."""

    @property
    def supervised_BT(self) -> Tensor:
        """bool: tokens that a model learns to predict."""
        return self.has_predecessor_BT

    @property
    def has_predecessor_BT(self) -> Tensor:
        """bool: tokens with another one before them in their own document piece.

        They are what next-token prediction is asked for. The first token of a piece, where
        positions restart, has nothing to be predicted from, and padding is no text.
        """
        return (self.document_ids_BT >= 0) & (self.positions_BT > 0)

    def to(self, device: torch.device) -> Batch:
        """The same rows on ``device``."""
        return type(self)(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """Rows of one document each, of which only the label at its end is learnt."""

    label_BT: Tensor
    """bool: the tokens of the label."""

    @property
    def supervised_BT(self) -> Tensor:
        """The tokens of the label."""
        return self.label_BT


class BatchSource(Protocol):
    """Training rows as a function of the step: nothing about their order has to be saved."""

    domains: list[str]
    sequence_length: int
    vocabulary_size: int

    def batch(self, step: int, micro_batch: int, *, batch_size: int, micro_batches: int) -> Batch:
        """Micro-batch ``micro_batch`` of the ``micro_batches`` of a step: a pure function.

        The rows of a step and their order depend on ``batch_size * micro_batches`` only: processes
        that share a micro-batch ask for more and smaller ones.
        """
        ...

    def weights_at(self, sample: int) -> dict[str, float]:
        """The share of each domain that holds for a sample."""
        ...
