from __future__ import annotations

from itertools import chain

import pytest
import torch

from wrinklefree.errors import UserError
from wrinklefree.mixture.token_rows import TokenRows


def counting_rows() -> torch.Tensor:
    """Rows that count upwards modulo 30, from anywhere."""
    return (torch.arange(30)[:, None] + torch.arange(12)) % 30


def test_every_row_is_read_once_in_an_epoch_and_in_another_order_in_the_next():
    rows = TokenRows(counting_rows(), seed=2)
    epochs = [
        [
            rows.batch(step, 0, batch_size=5, micro_batches=1).tokens_BT[:, 0].tolist()
            for step in range(6 * epoch, 6 * epoch + 6)
        ]
        for epoch in (0, 1)
    ]
    first, second = (list(chain(*batches)) for batches in epochs)
    assert sorted(first) == sorted(second) == list(range(30)) and first != second
    halves = [rows.batch(0, part, batch_size=5, micro_batches=2).tokens_BT for part in (0, 1)]
    whole = rows.batch(0, 0, batch_size=10, micro_batches=1).tokens_BT
    assert torch.equal(torch.cat(halves), whole)


@pytest.mark.parametrize("shape", [(0, 5), (5, 1), (5,)])
def test_what_is_no_rows_is_refused(shape: tuple[int, ...]):
    with pytest.raises(UserError, match=r"expected \[rows, tokens of a row\]"):
        TokenRows(torch.zeros(shape, dtype=torch.int64), seed=1)
