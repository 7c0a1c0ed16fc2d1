"""A sum over rows that is differentiated block by block, so that no graph outlives its block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK_NUMBERS = 2**23
"""Numbers in a block's largest tensor: 32 MiB of float32. The default run's steps are one block."""

Total = Callable[..., Tensor]
"""``total(rows, *inputs)``: what the rows of a slice add to the sum, a scalar."""


def sum_by_blocks(
    total: Total, inputs: Sequence[Tensor], parameters: Sequence[Tensor], *, rows: int, size: int
) -> Tensor:
    """``total(slice(0, rows), *inputs)``, a scalar, as the sum over blocks of ``size`` rows.

    Where gradients are wanted, each block's are computed as soon as its part of the sum is, while
    its tensors are still there: that costs no product more than keeping them would. ``total`` is
    called once for each block, in order; it is called with no rows where there are none.

    Parameters
    ----------
    inputs : what ``total`` is given; it sees none of their history.
    parameters : leaves that ``total`` uses without being given them. Gradients reach these and
        ``inputs``, and nothing else.
    size : rows of a block, the last one may be shorter.
    """
    blocks = [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]
    wanted = [tensor for tensor in (*inputs, *parameters) if tensor.requires_grad]
    if torch.is_grad_enabled() and wanted:
        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        result = _SumByBlocks.apply(total, blocks, len(inputs), *inputs, *parameters)
        assert isinstance(result, Tensor)
        return result
    return torch.stack([total(rows, *inputs) for rows in blocks]).sum()


def block_size(numbers_per_row: int, *, least: int) -> int:
    """Rows of a block: as many as ``BLOCK_NUMBERS`` has room for, but ``least`` at the least."""
    return max(least, BLOCK_NUMBERS // max(numbers_per_row, 1))


class _SumByBlocks(torch.autograd.Function):
    """Keeps the gradients of the sum from the forward pass; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, total: Total, blocks: list[slice], count: int, *tensors: Tensor
    ) -> Tensor:
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in tensors[:count]]
        ctx.learning = [tensor.requires_grad for tensor in tensors]
        learners = [x for x in (*inputs, *tensors[count:]) if x.requires_grad]
        values: list[Tensor] = []
        sums: list[Tensor] = []
        for rows in blocks:
            with torch.enable_grad():
                value = total(rows, *inputs)
            with torch.autocast(value.device.type, enabled=False):  # as for any backward pass
                gradients = torch.autograd.grad(value, learners)
            values.append(value.detach())
            if not sums:
                sums = [gradient.clone() for gradient in gradients]  # two may share their memory
                continue
            for running, gradient in zip(sums, gradients, strict=True):
                running += gradient
        ctx.save_for_backward(*sums)
        return torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # In place, for these may be as large as the head. A second pass is refused by autograd.
        scaled = iter([saved.mul_(gradients[0]) for saved in ctx.saved_tensors])
        return None, None, None, *(next(scaled) if learns else None for learns in ctx.learning)
