from __future__ import annotations

import math

import pytest
import torch

from wrinklefree.distill.logits import logits_divergence


def slow_divergence(teacher, student, temperature):
    """The definition, number by number."""
    result = []
    for row_teacher, row_student in zip(teacher.tolist(), student.tolist(), strict=True):
        p = [math.exp(x / temperature) for x in row_teacher]
        q = [math.exp(x / temperature) for x in row_student]
        pairs = [(a / sum(p), b / sum(q)) for a, b in zip(p, q, strict=True)]
        result.append(sum(a * math.log(a / b) for a, b in pairs if a > 0))
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0])
@pytest.mark.parametrize("squared", [False, True])
def test_divergence_follows_its_definition(temperature, squared):
    teacher, student = torch.randn(2, 7, 13, dtype=torch.float64) * 2
    ours = logits_divergence(teacher, student, temperature=temperature, temperature_squared=squared)
    expected = slow_divergence(teacher, student, temperature)
    torch.testing.assert_close(ours, expected * (temperature**2 if squared else 1))
    reverse = slow_divergence(student, teacher, temperature)
    assert not torch.allclose(expected, reverse)


def test_impossible_tokens_count_nothing_and_get_no_gradient():
    teacher, student = torch.randn(2, 4, 9, dtype=torch.float64)
    student.requires_grad_()
    impossible = torch.arange(9) == 5
    ours = logits_divergence(
        teacher.masked_fill(impossible, float("-inf")),
        student.masked_fill(impossible, float("-inf")),
        temperature=2.0,
        temperature_squared=False,
    )
    torch.testing.assert_close(
        ours, slow_divergence(teacher[:, ~impossible], student[:, ~impossible], 2.0)
    )
    ours.sum().backward()
    assert student.grad.isfinite().all()
    assert not student.grad[:, 5].any()


def test_low_precision_logits_are_compared_in_float32():
    teacher, student = torch.randn(2, 4, 9).bfloat16()
    ours = logits_divergence(teacher, student, temperature=1.0, temperature_squared=False)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours.double(), slow_divergence(teacher, student, 1.0), rtol=1e-4, atol=1e-6
    )
