"""Norms of gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def gradient_norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm of all entries of ``gradients``, accumulated in float32.

    Sharded gradients give the norm over all shards, the same on every rank. Infinite or NaN if an
    entry is (or the sum of squares overflows); 0.0 for no gradients.
    """
    return torch.linalg.vector_norm(gradient_norms(gradients)).item() if gradients else 0.0


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of each of ``gradients`` (at least one), float32, shape [number of gradients]."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return torch.stack([whole(norm) for norm in norms])


def whole(tensor: Tensor) -> Tensor:
    """``tensor``, put together from its shards where it has some; a collective operation then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
