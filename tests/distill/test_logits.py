from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from wrinklefree.distill.logits import logits_divergence
from wrinklefree.distill.settings import Direction


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
    target = torch.randint(13, (7,))
    forward = slow_divergence(teacher, student, temperature)
    reverse = slow_divergence(student, teacher, temperature)
    confidence = teacher.softmax(-1)[torch.arange(7), target]
    expected = {
        "forward": forward,
        "reverse": reverse,
        "confidence": confidence * reverse + (1 - confidence) * forward,
    }
    how = {"temperature": temperature, "temperature_squared": squared}
    for direction in get_args(Direction):
        ours = logits_divergence(teacher, student, target, direction=direction, **how)
        factor = temperature**2 if squared else 1
        torch.testing.assert_close(ours, expected[direction] * factor)


@pytest.mark.parametrize("direction", get_args(Direction))
def test_impossible_tokens_count_nothing_and_get_no_gradient(direction):
    teacher, student = torch.randn(2, 4, 9, dtype=torch.float64)
    student.requires_grad_()
    impossible = torch.arange(9) == 5
    ours = logits_divergence(
        teacher.masked_fill(impossible, float("-inf")),
        student.masked_fill(impossible, float("-inf")),
        torch.tensor([0, 1, 2, 8]),
        temperature=2.0,
        temperature_squared=False,
        direction=direction,
    )
    without = logits_divergence(
        teacher[:, ~impossible],
        student[:, ~impossible],
        torch.tensor([0, 1, 2, 7]),
        temperature=2.0,
        temperature_squared=False,
        direction=direction,
    )
    torch.testing.assert_close(ours, without)
    ours.sum().backward()
    assert student.grad.isfinite().all()
    assert not student.grad[:, 5].any()


def test_low_precision_logits_are_compared_in_float32():
    teacher, student = torch.randn(2, 4, 9).bfloat16()
    how = {"temperature": 1.0, "temperature_squared": False}
    ours = logits_divergence(teacher, student, torch.zeros(4, dtype=torch.int64), **how)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours.double(), slow_divergence(teacher, student, 1.0), rtol=1e-4, atol=1e-6
    )
