"""Running averages of an optimizer in eight bits, in plain torch. See README.md.

A code for each entry, a scale for each block of entries.

Shapes: N entries of a tensor, flat; K blocks of them, the last of which may be shorter.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2048
LARGEST_CODE = 127
LOWER_BITS = 15
"""Of a float32. The others tell numbers apart that differ by 0.4 %; those of a map do by more."""
Map = Literal["linear", "dynamic", "dynamic_unsigned"]
"""``linear``: int8 codes, evenly spaced. ``dynamic`` (arXiv 2110.02861): uint8 codes, spaced by
magnitude over seven decades; ``dynamic_unsigned`` holds numbers of 0 and above."""


@functools.cache
def dynamic_values(signed: bool) -> Tensor:
    """The 256 numbers of a dynamic map in rising order, float32, from 0 or -0.993 to 1.

    Each decade from 1e-7 to 1 is divided evenly, into twice as many parts as the one below it.
    """
    values = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for decade in range(7):
        parts = 2**decade * (1 if signed else 2)
        edges = torch.linspace(0.1, 1.0, parts + 1, dtype=torch.float64) * 10.0 ** (decade - 6)
        middles = (edges[:-1] + edges[1:]) / 2
        values += [middles, -middles] if signed else [middles]
    return torch.cat(values).sort().values.float()


class Tables(NamedTuple):
    """A dynamic map on a device, and where a search among its numbers starts."""

    values: Tensor
    """float32 [256], rising."""
    middles: Tensor
    """float32 [256], between a number and the next; infinity behind the last one."""
    lowest_codes: Tensor
    """int32 [2^17]: for the upper bits of a float32, the lowest code that such numbers have."""


@functools.cache
def tables(signed: bool, device: torch.device) -> Tables:
    """The tables of ``dynamic_values(signed)`` on ``device``, made once."""
    values = dynamic_values(signed)
    middles = (values[:-1] + values[1:]) / 2
    upper = torch.arange(1 << (32 - LOWER_BITS)) << LOWER_BITS
    negative = upper >= 1 << 31
    lowest = (upper + negative * ((1 << LOWER_BITS) - 1)).to(torch.uint32).view(torch.float32)
    codes = torch.bucketize(lowest.nan_to_num(), middles, out_int32=True)
    beyond = torch.tensor([torch.inf])
    return Tables(values.to(device), torch.cat([middles, beyond]).to(device), codes.to(device))


def move_average(
    codes: Tensor,
    largest_K: Tensor,
    entries: Tensor,
    rate: float,
    kind: Map,
    *,
    nesterov: bool = False,
    squared: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """See :func:`wrinklefree.kernels.momentum_8bit.move_average`."""
    entries = entries.float()
    entries = entries.square() if squared else entries
    average = dequantize_blocks(codes, largest_K, kind)
    # Not lerp, which rounds once or twice as the device likes.
    average += (entries - average).mul_(rate)
    new_codes, new_largest_K = quantize_blocks(average, kind)
    codes.copy_(new_codes)
    largest_K.copy_(new_largest_K)
    if nesterov:
        average += (entries - average).mul_(rate)
    return average.to(dtype)


def quantize_blocks(tensor: Tensor, kind: Map) -> tuple[Tensor, Tensor]:
    """Codes in the shape of ``tensor``, int8 or uint8, and the largest magnitudes, float32 [K].

    A number is rounded to the nearest of the map times its block's largest magnitude. In the
    unsigned map it is never rounded to 0, which as a mean square would let a step explode.
    """
    blocks_KB = _in_blocks(tensor.float())
    largest_K = blocks_KB.abs().amax(dim=1)
    shares_KB = blocks_KB / torch.where(largest_K > 0, largest_K, 1.0)[:, None]
    if kind == "linear":
        codes_KB = shares_KB.mul_(LARGEST_CODE).round_().to(torch.int8)
    else:
        codes_KB = _nearest_codes(shares_KB, signed=kind == "dynamic")
        if kind == "dynamic_unsigned":
            codes_KB.clamp_(min=1)
    return codes_KB.flatten()[: tensor.numel()].view(tensor.shape), largest_K


def dequantize_blocks(codes: Tensor, largest_K: Tensor, kind: Map) -> Tensor:
    """float32 numbers in the shape of ``codes``."""
    codes_KB = _in_blocks(codes)
    if kind == "linear":
        # Divided by a tensor: on CUDA torch multiplies with the reciprocal of a number.
        step_K = largest_K / largest_K.new_tensor(LARGEST_CODE)
        blocks_KB = codes_KB.float().mul_(step_K[:, None])
    else:
        values = tables(kind == "dynamic", codes.device).values
        numbers = values.index_select(0, codes_KB.flatten().int())
        blocks_KB = numbers.view_as(codes_KB).mul_(largest_K[:, None])
    return blocks_KB.flatten()[: codes.numel()].view(codes.shape)


def zero_blocks(parameter: Tensor, kind: Map) -> tuple[Tensor, Tensor]:
    """Codes and scales of zeros in the shape of ``parameter``, on its device (``meta`` too)."""
    dtype = torch.int8 if kind == "linear" else torch.uint8
    blocks = -(-parameter.numel() // BLOCK)
    scales_K = torch.zeros(blocks, dtype=torch.float32, device=parameter.device)
    return torch.zeros_like(parameter, dtype=dtype), scales_K


def _nearest_codes(shares_KB: Tensor, *, signed: bool) -> Tensor:
    """Codes, uint8, of float32 numbers from -1 to 1.

    A search among the middles between neighbours would take 40 times as long on a CPU. Here the
    upper bits of a number say where the search ends, or one code below.
    """
    _, middles, lowest_codes = tables(signed, shares_KB.device)
    shares = shares_KB.flatten()
    upper_bits = (shares.view(torch.int32) >> LOWER_BITS) & (len(lowest_codes) - 1)
    codes = lowest_codes.index_select(0, upper_bits)
    codes += shares > middles.index_select(0, codes)
    return codes.to(torch.uint8).view_as(shares_KB)


def _in_blocks(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
