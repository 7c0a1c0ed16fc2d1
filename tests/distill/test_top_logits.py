from __future__ import annotations

import pytest
import torch

from wrinklefree.distill.logits import logits_divergence
from wrinklefree.distill.top_logits import TopLogits

HOW = {"temperature_squared": False}


def pair(tokens: int = 63, vocabulary: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    teacher = 3 * torch.randn(tokens, vocabulary, dtype=torch.float64)
    return teacher, teacher + torch.randn_like(teacher)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_divergence_is_that_of_the_likeliest_tokens_and_all_others(direction, temperature):
    teacher, student = pair(7, 20)
    found = TopLogits.of(teacher, 4, temperature).divergence(
        student, temperature=temperature, temperature_squared=True, direction=direction
    )
    for token in range(7):
        p, q = ((x[token] / temperature).softmax(0) for x in (teacher, student))
        top = p.topk(4).indices
        outcomes = [torch.cat([x[top], 1 - x[top].sum(0, keepdim=True)]) for x in (p, q)]
        first, second = outcomes if direction == "forward" else reversed(outcomes)
        expected = temperature**2 * (first * (first / second).log()).sum()
        torch.testing.assert_close(found[token], expected)


def test_more_tokens_come_nearer_to_the_whole_divergence_and_never_above() -> None:
    teacher, student = pair()
    target = torch.zeros(63, dtype=torch.int64)
    whole = logits_divergence(teacher, student, target, temperature=1.0, **HOW)
    parts = [
        TopLogits.of(teacher, kept, 1.0).divergence(student, temperature=1.0, **HOW)
        for kept in (1, 8, 64, 499)
    ]
    for fewer, more in zip(parts, [*parts[1:], whole], strict=True):
        assert (fewer <= more + 1e-6).all()
    torch.testing.assert_close(parts[-1], whole, rtol=1e-5, atol=1e-5)


def test_what_is_missing_is_the_divergence_among_the_others() -> None:
    teacher, student = pair()
    p, q = teacher.softmax(-1), student.softmax(-1)
    top = TopLogits.of(teacher, 16, 1.0)
    kept = torch.zeros_like(p, dtype=torch.bool).scatter(1, top.ids_NK, True)
    among = [torch.where(kept, 0.0, x) for x in (p, q)]
    one, two = (x / x.sum(-1, keepdim=True) for x in among)
    missing = among[0].sum(-1) * torch.where(kept, 0.0, one * (one / two).log()).nansum(-1)
    target = torch.zeros(63, dtype=torch.int64)
    whole = logits_divergence(teacher, student, target, temperature=1.0, **HOW)
    torch.testing.assert_close(top.divergence(student, temperature=1.0, **HOW) + missing, whole)


def test_bfloat16_moves_the_divergence_by_less_than_a_hundredth() -> None:
    teacher, student = pair()
    top = TopLogits.of(teacher.float(), 64, 1.0)
    exact = top.divergence(student.float(), temperature=1.0, **HOW)
    stored = TopLogits(top.ids_NK, top.log_NO.bfloat16().float().log_softmax(-1))
    rounded = stored.divergence(student.float(), temperature=1.0, **HOW)
    assert (rounded - exact).abs().max() < 0.01 < exact.max()


def test_the_gradient_is_finite_where_the_others_have_no_mass() -> None:
    teacher, student = torch.zeros(2, 5), torch.zeros(2, 5, requires_grad=True)
    teacher[:, 0] = 60.0
    top = TopLogits.of(teacher, 2, 1.0)
    top.divergence(60 * student + teacher, temperature=1.0, **HOW).sum().backward()
    assert student.grad is not None and student.grad.isfinite().all()
