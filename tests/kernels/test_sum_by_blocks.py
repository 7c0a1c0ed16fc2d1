from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from wrinklefree.kernels.sum_by_blocks import block_size, sum_by_blocks

N, D, V = 37, 12, 53


def problem(dtype=torch.float64):
    """Hidden states, a head, and the sum of a cross-entropy and a divergence over rows."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    hidden = torch.randn(N, D, generator=generator, dtype=dtype).requires_grad_()
    head = torch.nn.Linear(D, V, dtype=dtype)
    teacher = torch.randn(N, V, generator=generator, dtype=dtype).log_softmax(-1)
    target = torch.randint(0, V, (N,), generator=generator)
    weight = torch.rand(N, generator=generator, dtype=dtype)
    calls = []

    def total(rows, hidden):
        logits = head(hidden[rows])
        calls.append(rows)
        student = (logits.to(dtype) / 3).log_softmax(-1)
        divergence = (teacher[rows].exp() * (teacher[rows] - student)).sum(-1)
        loss = functional.cross_entropy(logits.to(dtype), target[rows], reduction="none")
        return (weight[rows] * (loss + 2 * divergence)).sum()

    return hidden, head, total, calls


def close(actual, expected):
    return (actual - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("size", [1, 7, 36, 37, 100])
def test_value_and_gradients_are_those_of_the_whole_sum(size):
    hidden, head, total, calls = problem()
    inputs = (hidden, head.weight, head.bias)
    # The weight is used a second time, as that of a tied embedding is.
    expected = 5 * total(slice(0, N), hidden) + head.weight.square().sum()
    gradients = torch.autograd.grad(expected, inputs)
    calls.clear()
    found = sum_by_blocks(total, [hidden], list(head.parameters()), rows=N, size=size)
    assert len(calls) == -(-N // size)
    ours = 5 * found + head.weight.square().sum()
    assert close(ours, expected)
    for mine, theirs in zip(torch.autograd.grad(ours, inputs), gradients, strict=True):
        assert close(mine, theirs)
    with torch.no_grad():
        assert close(sum_by_blocks(total, [hidden], (), rows=N, size=size), found)


def test_a_row_may_look_at_all_of_an_input_and_two_inputs_may_share_their_gradient():
    first, second = torch.randn(2, 9, 4, dtype=torch.float64).unbind()
    inputs = [x.clone().requires_grad_() for x in (first, second)]
    factor = torch.randn(9, 4, dtype=torch.float64)

    def total(rows, x, y):
        return ((x[rows] @ y.mT).exp().sum(-1) + ((x + y) * factor).sum(-1)[rows]).sum()

    expected = torch.autograd.grad(total(slice(0, 9), *inputs), inputs)
    for size in (2, 9):
        ours = torch.autograd.grad(sum_by_blocks(total, inputs, (), rows=9, size=size), inputs)
        assert all(map(close, ours, expected))
    shared = sum_by_blocks(lambda rows, x, y: ((x + y) * factor).sum(), inputs, (), rows=9, size=9)
    for gradient in torch.autograd.grad(3 * shared, inputs):
        torch.testing.assert_close(gradient, 3 * factor)


def test_one_block_has_the_bits_of_plain_autograd_also_in_bfloat16():
    for enabled in (False, True):
        hidden, head, total, _ = problem(torch.float32)

        def mixed(rows, x, total=total):
            loss = total(rows, x)
            with torch.autocast("cpu", enabled=False):  # whose backward pass is in float32 as well
                return loss + (x[rows] @ x.mT).tanh().sum()

        inputs = (hidden, head.weight, head.bias)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            whole = mixed(slice(0, N), hidden)
            one, some = (
                sum_by_blocks(mixed, [hidden], list(head.parameters()), rows=N, size=size)
                for size in (N, 8)  # blocks share the weight that autocast has cast
            )
        expected = torch.autograd.grad(whole, inputs)
        assert all(map(torch.equal, torch.autograd.grad(one, inputs), expected))
        for mine, theirs in zip(torch.autograd.grad(some, inputs), expected, strict=True):
            assert (mine - theirs).norm() <= (1e-2 if enabled else 1e-5) * theirs.norm()


def test_what_does_not_learn_gets_no_gradient():
    hidden, head, total, _ = problem()
    head.weight.requires_grad_(False)
    sum_by_blocks(total, [hidden], list(head.parameters()), rows=N, size=8).backward()
    assert head.weight.grad is None
    assert head.bias.grad is not None
    fixed = hidden.detach()
    total_of_fixed = sum_by_blocks(total, [fixed], list(head.parameters()), rows=N, size=8)
    gradient = torch.autograd.grad(total_of_fixed, head.bias)[0]
    assert close(gradient, head.bias.grad)


def test_a_second_backward_pass_is_refused():
    hidden, head, total, _ = problem()
    loss = sum_by_blocks(total, [hidden], list(head.parameters()), rows=N, size=8)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_rows_are_one_block_of_none():
    hidden, head, total, calls = problem()
    found = sum_by_blocks(total, [hidden], list(head.parameters()), rows=0, size=8)
    found.backward()
    assert found == 0
    assert len(calls) == 1
    assert not hidden.grad.any()


def test_a_block_has_room_for_its_numbers_and_at_least_so_many_rows():
    assert block_size(4096, least=256) == 2048
    assert block_size(151_936, least=256) == 256
