from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from transformers import PreTrainedModel

from wrinklefree.mixture.batch import Batch
from wrinklefree.models.losses import mean_next_token_loss, row_losses
from wrinklefree.models.surgery import insert_bitlinear


def test_the_losses_of_rows_are_the_mean_losses_of_each_alone(
    tiny: Callable[..., PreTrainedModel], batch: Callable[..., Batch]
) -> None:
    model, rows = tiny(), batch(rows=4)
    insert_bitlinear(model)
    rows.document_ids_BT[2] = -1
    for strength in (0.0, 1.0):
        losses = row_losses(model, rows, strength)
        assert losses.dtype == torch.float64
        for row in (0, 1, 3):
            alone = Batch(**{f.name: getattr(rows, f.name)[row : row + 1] for f in fields(Batch)})
            expected = mean_next_token_loss(model, [alone], strength)
            assert losses[row].item() == pytest.approx(expected, rel=1e-5)
        assert losses[2] == 0
    assert not torch.equal(row_losses(model, rows, 0.0), row_losses(model, rows, 1.0))
