"""The reference's scales by blocks that a processor's cache holds: several times as fast there.

Sums are in float64, so the scales are the reference's but for what is beyond float32.

Shapes: V vectors of L weights that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from wrinklefree.kernels.in_cache import AT_ONCE, is_on_processor, outgrows_cache
from wrinklefree.kernels.quantize_weights import reference


def absmean_scale(weight_VL: Tensor) -> Tensor:
    """See ``reference.absmean_scale``."""
    return _by_blocks(weight_VL, _absmean_of_one, reference.absmean_scale)


def least_squares_scale(weight_VL: Tensor) -> Tensor:
    """See ``reference.least_squares_scale``."""
    return _by_blocks(weight_VL, _least_squares_of_one, reference.least_squares_scale)


def _by_blocks(
    weight_VL: Tensor, of_one: Callable[[Tensor], Tensor], fit: Callable[[Tensor], Tensor]
) -> Tensor:
    if len(weight_VL) == 1 and is_on_processor(weight_VL):
        return of_one(weight_VL[0]).reshape(1, 1)
    if not outgrows_cache(weight_VL):
        return fit(weight_VL)
    vectors = max(1, AT_ONCE // weight_VL.shape[1])
    return torch.cat([fit(block_VL) for block_VL in weight_VL.split(vectors)])


def _absmean_of_one(weight_L: Tensor) -> Tensor:
    total = _sum([part.abs().sum(dtype=torch.float64) for part in weight_L.split(AT_ONCE)])
    return reference.rounded_scale(total / len(weight_L), weight_L)


@np.errstate(invalid="ignore", over="ignore")  # NaN makes NaN, as in torch: nobody is warned
def _least_squares_of_one(weight_L: Tensor) -> Tensor:
    """Blocks are sorted once: from one fit to the next only the weights in between are summed.

    All in numpy, whose operations on few numbers take a tenth of the time of torch's.
    """
    compared = torch.promote_types(weight_L.dtype, torch.float32)
    blocks = [np.abs(part.to(compared).numpy()) for part in weight_L.detach().split(AT_ONCE)]
    number = blocks[0].dtype.type
    starts, count = [0] * len(blocks), len(weight_L)
    total = sum(block.sum(dtype=np.float64) for block in blocks)
    for block in blocks:
        block.sort()
    scale = _rounded(total / count, number)
    for _ in range(reference.ITERATIONS):
        for index, (block, start) in enumerate(zip(blocks, starts, strict=True)):
            starts[index] = found = int(block.searchsorted(scale / 2, side="right"))
            if found > start:  # as nearly always: the mean of what is above a threshold grows
                total -= block[start:found].sum(dtype=np.float64)
            elif found < start:
                total += block[found:start].sum(dtype=np.float64)
            count -= found - start
        if count:
            scale = _rounded(total / count, number)
    return torch.tensor(scale)


def _rounded(scale: float, number: type[np.floating]) -> np.floating:
    """What ``reference.rounded_scale`` makes of it."""
    return max(number(scale), number(reference.MINIMUM_SCALE))  # NaN stays, being the first


def _sum(numbers: list[Tensor]) -> Tensor:
    return torch.stack(numbers).sum(dtype=torch.float64)
