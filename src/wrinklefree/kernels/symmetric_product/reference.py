"""Products that are symmetric matrices, in plain torch. See README.md.

Shapes: K matrices (none, or one leading dimension) of R rows and C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gram(x_KRC: Tensor) -> Tensor:
    """``X Xᵀ``, [K, R, R]."""
    return x_KRC @ x_KRC.mT


def polynomial(gram_KRR: Tensor, b: float, c: float) -> Tensor:
    """``b A + c A A``, [K, R, R]."""
    product = torch.addmm if gram_KRR.ndim == 2 else torch.baddbmm
    return product(gram_KRR, gram_KRR, gram_KRR, beta=b, alpha=c)
