"""The norm of all gradients."""

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
    if not gradients:
        return 0.0
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(whole)).item()
