from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wrinklefree.optim.newton_schulz import COEFFICIENTS, ITERATIONS, orthogonalize

SHAPES = [(7, 7), (63, 17), (17, 63), (1, 9), (9, 1), (100, 37)]


def reference(matrix_RC: Tensor) -> Tensor:
    """The iteration as it is written in the post, in float64, always on the side of the rows."""
    a, b, c = COEFFICIENTS
    x = matrix_RC.double() / torch.linalg.matrix_norm(matrix_RC.double())
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + b * (gram @ x) + c * (gram @ gram @ x)
    return x


def by_singular_values(matrix_RC: Tensor) -> Tensor:
    """U p(p(...p(S)...)) Vᵀ: the iteration touches singular values only."""
    a, b, c = COEFFICIENTS
    u, s, v = torch.linalg.svd(matrix_RC.double(), full_matrices=False)
    s = s / torch.linalg.vector_norm(s)
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_reference_in_float64(shape: tuple[int, int]) -> None:
    matrix_RC = torch.randn(shape, dtype=torch.float64)
    result = orthogonalize(matrix_RC, torch.float64)
    torch.testing.assert_close(result, reference(matrix_RC), rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(result, by_singular_values(matrix_RC), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_is_the_default_and_close(shape: tuple[int, int]) -> None:
    matrix_RC = torch.randn(shape)
    result = orthogonalize(matrix_RC)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), reference(matrix_RC), rtol=1e-4, atol=1e-4)


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
    assert not orthogonalize(torch.zeros(4, 6)).any()
