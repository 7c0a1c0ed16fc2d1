from __future__ import annotations

import math

import pytest
import torch

from wrinklefree.distill.hidden import DISTANCES, fitted_map, hidden_distance


def slow_distance(teacher: list[float], student: list[float], distance: str) -> float:
    product = math.fsum(a * b for a, b in zip(teacher, student, strict=True))
    square, other = (math.fsum(a * a for a in vector) for vector in (teacher, student))
    if distance == "cosine":
        return 1 - product / math.sqrt(square * other)
    return (square - 2 * product + other) / square


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_token_is_compared_by_the_formula(distance) -> None:
    teacher, student = torch.randn(2, 3, 7, 63, dtype=torch.float64)
    found = hidden_distance(teacher, student, distance)
    for row in range(3):
        for token in range(7):
            expected = slow_distance(
                teacher[row, token].tolist(), student[row, token].tolist(), distance
            )
            assert found[row, token].item() == pytest.approx(expected)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_token_with_massive_activations_counts_as_any_other(distance) -> None:
    teacher, student = torch.randn(2, 1, 5, 32)
    size = torch.tensor([1.0, 1.0, 1000.0, 1.0, 1e-3])[:, None]
    found = hidden_distance(teacher * size, student * size, distance)
    torch.testing.assert_close(found, hidden_distance(teacher, student, distance))


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_computed_in_float32_and_a_token_of_zeros_is_no_division_by_it(
    distance,
) -> None:
    zeros = torch.zeros(1, 1, 8, dtype=torch.bfloat16, requires_grad=True)
    found = hidden_distance(torch.zeros(1, 1, 8), zeros, distance)
    found.sum().backward()
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert zeros.grad is not None and zeros.grad.isfinite().all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_states_in_bfloat16_are_compared_as_the_numbers_that_they_are(distance) -> None:
    teacher, student = torch.randn(2, 3, 5, 64).bfloat16()
    found = hidden_distance(teacher, student, distance)
    assert torch.equal(found, hidden_distance(teacher.float(), student.float(), distance))


def test_a_map_between_widths_is_the_best_and_the_gradient_that_of_what_it_leaves() -> None:
    teacher = torch.randn(40, 7, dtype=torch.float64) * torch.logspace(-2, 3, 40)[:, None]
    student = torch.randn(40, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(40, dtype=torch.float64)

    def left(mapped: torch.Tensor) -> torch.Tensor:
        return (weight * hidden_distance(teacher, mapped, "normalized_mse")).sum()

    ours = left(student @ fitted_map(teacher, student, weight))
    (found,) = torch.autograd.grad(ours, student)
    root = (weight / teacher.square().sum(-1)).sqrt()[:, None]
    solved = torch.linalg.lstsq(root * student, root * teacher).solution  # differentiated through
    (expected,) = torch.autograd.grad(left(student @ solved), student)
    torch.testing.assert_close(found, expected)
    for _ in range(5):
        other = solved.detach() + 0.01 * torch.randn_like(solved)
        assert left(student @ other) > ours


def test_a_feature_that_is_nothing_is_no_division_by_it() -> None:
    teacher, student = torch.randn(30, 4), torch.randn(30, 3)
    student[:, 1] = 0.0
    assert fitted_map(teacher, student, torch.ones(30)).isfinite().all()
