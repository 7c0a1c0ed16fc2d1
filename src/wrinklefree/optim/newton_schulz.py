"""Orthogonalization of a matrix by polynomial iteration, with the coefficients of two sources.

Shapes: R rows, C columns of a weight; K matrices (none, or one leading dimension).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wrinklefree.kernels.capabilities import multiplies_faster
from wrinklefree.kernels.symmetric_product import gram, polynomial

Coefficients = Literal["classic", "polar_express"]
Compute = Literal["auto", "float32", "bfloat16"]

CLASSIC = (3.4445, -4.7750, 2.0315)
"""The odd quintic of Jordan et al. (2024). It is steep at 0: five steps lift small singular values
to about 1, and leave them between 0.7 and 1.2."""
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Each quintic is the best one for the interval in which those before it leave the singular values
(arXiv 2505.16932, with a margin of 2 %). It comes closer to 1, at the same cost."""
ITERATIONS: dict[Coefficients, tuple[tuple[float, float, float], ...]] = {
    "classic": (CLASSIC,) * 5,
    "polar_express": POLAR_EXPRESS,
}
_SMALLEST_NORM = 1e-7


def compute_dtype(compute: Compute, device: torch.device) -> torch.dtype:
    """The type to iterate in; ``auto`` is bfloat16 where the machine multiplies it faster.

    On one core of a Zen 5 (AVX512-BF16) bfloat16 took a quarter to a third of the time of float32
    for 192 x 576 to 1536 x 576; without such instructions it is several times slower.
    """
    if compute != "auto":
        return torch.float32 if compute == "float32" else torch.bfloat16
    return torch.bfloat16 if multiplies_faster("bfloat16", device.type) else torch.float32


def orthogonalize(
    matrix_KRC: Tensor,
    compute_dtype: torch.dtype = torch.float32,
    coefficients: Coefficients = "classic",
) -> Tensor:
    """Replace the singular values of a matrix, or of each of a stack, by numbers near 1.

    Iterates ``X <- a X + b (X Xᵀ) X + c (X Xᵀ)² X`` from ``X = matrix / ‖matrix‖_F``. The result
    does not depend on the scale of the input; a zero matrix stays zero.

    Parameters
    ----------
    matrix_KRC : [R, C] or [K, R, C], floating point, on any device.
    compute_dtype : bfloat16 has a relative error of a percent.

    Returns
    -------
    In the shape of the input, in ``compute_dtype``.
    """
    tall = matrix_KRC.shape[-2] > matrix_KRC.shape[-1]
    # The Gram matrix is taken on the shorter side, which is cheaper and gives the same polynomial.
    x = (matrix_KRC.mT if tall else matrix_KRC).to(compute_dtype, copy=True)
    norm = x.norm(dim=(-2, -1), keepdim=True)
    if coefficients == "classic":
        x.div_(norm.clamp_(min=_SMALLEST_NORM))
    else:
        # Its polynomials explode above 1, so a rounded norm must not be too small.
        x.div_(norm * 1.02 + 1e-6)
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    for a, b, c in ITERATIONS[coefficients]:
        x = product(x, polynomial(gram(x), b, c), x, beta=a)
    return x.mT if tall else x
