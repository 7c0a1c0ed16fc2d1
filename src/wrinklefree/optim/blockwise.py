"""Eight-bit optimizer state: a code for each entry, a scale for each block of entries.

Shapes: N entries of a tensor, flat; K blocks of them, the last of which may be shorter.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 2048
_LOWER_BITS = 15
"""Of a float32. The others tell numbers apart that differ by 0.4 %; those of a map do by more."""
Map = Literal["linear", "dynamic", "dynamic_unsigned"]
"""``linear``: int8 codes, evenly spaced. ``dynamic`` (arXiv 2110.02861): uint8 codes, spaced by
magnitude over seven decades; ``dynamic_unsigned`` holds numbers of 0 and above."""


@functools.cache
def dynamic_values(signed: bool) -> Tensor:
    """The 256 numbers of a dynamic map in rising order, float32, from 0 or -0.993 to 1.

    Each decade from 1e-6 to 1 is divided evenly, into twice as many parts as the one below it.
    """
    values = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for decade in range(7):
        parts = 2**decade * (1 if signed else 2)
        edges = torch.linspace(0.1, 1.0, parts + 1, dtype=torch.float64) * 10.0 ** (decade - 6)
        middles = (edges[:-1] + edges[1:]) / 2
        values += [middles, -middles] if signed else [middles]
    return torch.cat(values).sort().values.float()


def quantize_blocks(tensor: Tensor, kind: Map) -> tuple[Tensor, Tensor]:
    """Codes in the shape of ``tensor``, int8 or uint8, and the largest magnitudes, float32 [K].

    A number is rounded to the nearest of the map times its block's largest magnitude. In the
    unsigned map it is never rounded to 0, which as a mean square would let a step explode.
    """
    blocks_KB = _in_blocks(tensor.float())
    largest_K = blocks_KB.abs().amax(dim=1)
    shares_KB = blocks_KB / torch.where(largest_K > 0, largest_K, 1.0)[:, None]
    if kind == "linear":
        codes_KB = shares_KB.mul_(127).round_().to(torch.int8)
    else:
        codes_KB = _nearest_codes(shares_KB, signed=kind == "dynamic")
        if kind == "dynamic_unsigned":
            codes_KB.clamp_(min=1)
    return codes_KB.flatten()[: tensor.numel()].view(tensor.shape), largest_K


def dequantize_blocks(codes: Tensor, largest_K: Tensor, kind: Map) -> Tensor:
    """float32 numbers in the shape of ``codes``."""
    codes_KB = _in_blocks(codes)
    if kind == "linear":
        blocks_KB = codes_KB.float().mul_(largest_K[:, None] / 127)
    else:
        values = dynamic_values(kind == "dynamic").to(codes.device)
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
    middles, lowest_codes = _search_table(signed, shares_KB.device)
    shares = shares_KB.flatten()
    upper_bits = (shares.view(torch.int32) >> _LOWER_BITS) & (len(lowest_codes) - 1)
    codes = lowest_codes.index_select(0, upper_bits)
    codes += shares > middles.index_select(0, codes)
    return codes.to(torch.uint8).view_as(shares_KB)


@functools.cache
def _search_table(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Middles between neighbours, and for all upper bits of a float32 the lowest code they have."""
    values = dynamic_values(signed)
    middles = (values[:-1] + values[1:]) / 2
    upper = torch.arange(1 << (32 - _LOWER_BITS)) << _LOWER_BITS
    negative = upper >= 1 << 31
    lowest = (upper + negative * ((1 << _LOWER_BITS) - 1)).to(torch.uint32).view(torch.float32)
    codes = torch.bucketize(lowest.nan_to_num(), middles, out_int32=True)
    return torch.cat([middles, torch.tensor([torch.inf])]).to(device), codes.to(device)


def _in_blocks(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    return F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
