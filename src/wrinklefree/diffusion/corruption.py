"""Which tokens are masked: a function of (seed, step, sample) alone.

Every row has a random generator of its own, so that a resumed run repeats its masks, and neither
the device nor the division of a step into micro-batches changes them.

Shapes: B rows, T tokens of a row, N supervised tokens of a row, K blocks with any.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wrinklefree.diffusion.masks import Blocks

EPSILON = 1e-3
"""Least probability of masking: bounds the weight 1 / p of the elbo loss by 1000."""


@dataclass(frozen=True)
class Corruption:
    """One masked view of a micro-batch."""

    masked_BT: Tensor
    """bool: tokens shown as the mask token; a text may contain that id by itself."""
    probability_BT: Tensor
    """float32: probability with which each token was to be masked; 1 where a token can't be."""


def keyed_generator(*key: str | int) -> np.random.Generator:
    """A generator of its own for each key: Philox under the first 128 bits of the key's SHA-256."""
    digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def corrupt(
    blocks: Blocks, supervised_BT: Tensor, sample_B: Tensor, *, seed: int, step: int
) -> Corruption:
    """Mask each supervised token with probability ``p = (1 - EPSILON) t + EPSILON`` of its block.

    t is uniform on (0, 1) for every block and stratified over the blocks of the row that have
    supervised tokens: of K blocks exactly one falls into each K-th of the interval. Unsupervised
    tokens are never masked. ``sample_B`` (int64) holds the global numbers of the rows.
    """
    supervised = supervised_BT.cpu().numpy()
    block = blocks.block_BT.cpu().numpy()
    masked = np.zeros(supervised.shape, dtype=bool)
    probability = np.ones(supervised.shape, dtype=np.float32)
    for row, sample in enumerate(sample_B.tolist()):
        generator = keyed_generator("corruption", seed, step, sample)
        name_K, block_of_N = np.unique(block[row, supervised[row]], return_inverse=True)
        count = len(name_K)
        time_K = (generator.permutation(count) + generator.random(count)) / count
        probability_N = ((1 - EPSILON) * time_K + EPSILON)[block_of_N]
        probability[row, supervised[row]] = probability_N
        masked[row, supervised[row]] = generator.random(len(block_of_N)) < probability_N
    device = supervised_BT.device
    return Corruption(torch.from_numpy(masked).to(device), torch.from_numpy(probability).to(device))


def complement(corruption: Corruption, supervised_BT: Tensor) -> Corruption:
    """The view that masks exactly the supervised tokens which ``corruption`` left.

    Its probability is ``1 - p``, not below EPSILON. Only blocks with t > 1 - EPSILON meet the
    bound; they bias the elbo loss downwards by less than EPSILON of its size.
    """
    probability_BT = (1 - corruption.probability_BT).clamp(min=EPSILON)
    return Corruption(
        masked_BT=supervised_BT & ~corruption.masked_BT,
        probability_BT=torch.where(supervised_BT, probability_BT, 1.0),
    )


def cosine_rate(progress: float) -> float:
    """The share of tokens that is masked: 1 at progress 0, 0 at progress 1 (arXiv 2202.04200)."""
    return math.cos(math.pi / 2 * progress)


def cosine_masks(maskable_BT: Tensor, sample_B: Tensor, *, seed: int, step: int) -> Tensor:
    """Mask ``ceil(cosine_rate(u) n)`` of the n maskable tokens of a row, u uniform on (0, 1).

    Which ones is drawn evenly; bool [B, T]. On average 2 / pi of them are masked, and many more
    often nearly all than nearly none: decoding begins with all of them. ``sample_B`` as above.
    """
    maskable = maskable_BT.cpu().numpy()
    masked = np.zeros(maskable.shape, dtype=bool)
    for row, sample in enumerate(sample_B.tolist()):
        generator = keyed_generator("cosine", seed, step, sample)
        (place_N,) = maskable[row].nonzero()
        count = math.ceil(cosine_rate(generator.random()) * len(place_N))
        masked[row, generator.permutation(place_N)[:count]] = True
    return torch.from_numpy(masked).to(maskable_BT.device)
