from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from wrinklefree.optim import newton_schulz
from wrinklefree.optim.newton_schulz import (
    ITERATIONS,
    POLAR_EXPRESS,
    Coefficients,
    compute_dtype,
    orthogonalize,
)

SHAPES = [(7, 7), (63, 17), (17, 63), (1, 9), (9, 1), (100, 37)]
KINDS: list[Coefficients] = ["classic", "polar_express"]


def first_norm(matrix_RC: Tensor, kind: Coefficients) -> float:
    norm = torch.linalg.matrix_norm(matrix_RC.double()).item()
    return norm if kind == "classic" else norm * 1.02 + 1e-6


def reference(matrix_RC: Tensor, kind: Coefficients = "classic") -> Tensor:
    """The iteration as it is written, in float64, always on the side of the rows."""
    x = matrix_RC.double() / first_norm(matrix_RC, kind)
    for a, b, c in ITERATIONS[kind]:
        gram = x @ x.T
        x = a * x + b * (gram @ x) + c * (gram @ gram @ x)
    return x


def by_singular_values(matrix_RC: Tensor, kind: Coefficients) -> Tensor:
    """U p(p(...p(S)...)) Vᵀ: the iteration touches singular values only."""
    u, s, v = torch.linalg.svd(matrix_RC.double(), full_matrices=False)
    s = s / first_norm(matrix_RC, kind)
    for a, b, c in ITERATIONS[kind]:
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference_in_float64(shape: tuple[int, int], kind: Coefficients) -> None:
    matrix_RC = torch.randn(shape, dtype=torch.float64)
    result = orthogonalize(matrix_RC, torch.float64, kind)
    torch.testing.assert_close(result, reference(matrix_RC, kind), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(result, by_singular_values(matrix_RC, kind), rtol=1e-9, atol=1e-10)


def best_quintic(low: float, high: float) -> tuple[float, float, float]:
    """The odd quintic whose largest distance from 1 on [low, high] is smallest.

    By Chebyshev: at four points, two of them extrema, the distance is the same with signs in turn.
    """
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    for _ in range(100):
        x = np.array([low, *inner, high])
        equations = np.stack([x, x**3, x**5, [1, -1, 1, -1]], axis=1)
        a, b, c, _ = np.linalg.solve(equations, np.ones(4))
        root = math.sqrt(9 * b * b - 20 * a * c)
        inner = [math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c))]
    return a, b, c


def test_the_polynomials_of_polar_express_are_the_best_ones_one_after_the_other() -> None:
    # Section 3 and the remarks on finite precision of arXiv 2505.16932: singular values lie above
    # 0.001, intervals are cut off below 0.02, and all but the last leave a margin of 2 %.
    low, high = 1e-3, 1.0
    for index, published in enumerate(POLAR_EXPRESS):
        a, b, c = best_quintic(max(low, 0.02 * high), high)
        if low < 0.02 * high:
            middle = sum(a * x + b * x**3 + c * x**5 for x in (low, high)) / 2
            a, b, c = a / middle, b / middle, c / middle
        if index < 4:
            a, b, c = a / 1.02, b / 1.02**3, c / 1.02**5
        assert published == pytest.approx((a, b, c), rel=1e-9)
        low = a * low + b * low**3 + c * low**5
        high = 2 - low


def test_polar_express_comes_closer_to_orthogonal_than_the_classic_quintic() -> None:
    matrix_RC = torch.randn(60, 40, dtype=torch.float64)
    off = {
        kind: (torch.linalg.svdvals(orthogonalize(matrix_RC, torch.float64, kind)) - 1).abs().mean()
        for kind in KINDS
    }
    assert off["polar_express"] < 0.5 * off["classic"]


def test_polar_express_stays_finite_in_bfloat16_at_the_largest_singular_value() -> None:
    torch.manual_seed(4)  # by rounding 0.86 to 1.14 over 3,000 draws
    rank_one = torch.outer(torch.randn(50), torch.randn(70))
    singular = torch.linalg.svdvals(
        orthogonalize(rank_one, torch.bfloat16, "polar_express").float()
    )
    assert 0.9 < singular[0] < 1.1


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_the_default_and_close(shape: tuple[int, int]) -> None:
    matrix_RC = torch.randn(shape)
    result = orthogonalize(matrix_RC)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), reference(matrix_RC), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_auto_computes_in_what_the_machine_multiplies_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr(
        newton_schulz, "multiplies_faster", lambda kind, _: fast and kind == "bfloat16"
    )
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert compute_dtype("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert compute_dtype("float32", cuda) == torch.float32
    assert compute_dtype("bfloat16", cpu) == torch.bfloat16


def test_compute_dtype_is_the_precision_of_the_result() -> None:
    matrix_RC = torch.randn(33, 21)
    exact = reference(matrix_RC)
    errors = {
        dtype: (orthogonalize(matrix_RC, dtype).double() - exact).norm() / exact.norm()
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert errors[torch.float32] < 1e-5
    assert 1e-3 < errors[torch.bfloat16] < 5e-2


def test_singular_values_of_a_well_conditioned_matrix_end_near_one() -> None:
    u, _ = torch.linalg.qr(torch.randn(40, 20, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))
    matrix_RC = u @ torch.diag(torch.linspace(0.05, 3.0, 20, dtype=torch.float64)) @ v
    singular = torch.linalg.svdvals(orthogonalize(matrix_RC, torch.float64))
    assert singular.min() > 0.65 and singular.max() < 1.25


def test_scale_of_the_input_does_not_matter_and_zero_stays_zero() -> None:
    matrix_RC = torch.randn(11, 5)
    torch.testing.assert_close(orthogonalize(matrix_RC * 1e-4), orthogonalize(matrix_RC))
    for kind in KINDS:
        assert not orthogonalize(torch.zeros(4, 6), coefficients=kind).any()
