from __future__ import annotations

import json
import math

import numpy
import pytest
import torch
from torch import nn

from wrinklefree.stability.adagc import AdaGC
from wrinklefree.stability.clip import ClipStats

SHAPES = [(7, 3), (5,), (), (1, 9)]


def gradients(steps: int, seed: int) -> list[list[torch.Tensor]]:
    """Of four tensors of different scales, each with spikes of its own."""
    generator = torch.Generator().manual_seed(seed)
    scales = [0.05, 0.5, 2.0, 30.0]
    return [
        [
            torch.randn(shape, generator=generator)
            * scale
            * (50.0 if torch.rand((), generator=generator) < 0.1 else 1.0)
            for shape, scale in zip(SHAPES, scales, strict=True)
        ]
        for _ in range(steps)
    ]


def clipped(
    adagc: AdaGC, step: list[torch.Tensor | None]
) -> tuple[ClipStats, list[torch.Tensor | None]]:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for parameter, gradient in zip(parameters, step, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    stats = adagc.clip(parameters)
    return stats, [parameter.grad for parameter in parameters]


def by_the_paper(
    steps: list[list[torch.Tensor]], *, ratio: float, decay: float, warmup: int, most: float
) -> list[list[numpy.ndarray]]:
    """Algorithm 1 in float64, on arrays."""
    gamma: list[float] = []
    out = []
    for t, step in enumerate(steps):
        arrays = [gradient.double().numpy() for gradient in step]
        norms = [math.sqrt((array**2).sum()) for array in arrays]
        if t < warmup:
            h = min(most / math.sqrt(sum(norm**2 for norm in norms)), 1.0)
            arrays = [h * array for array in arrays]
            norms = [h * norm for norm in norms]
            gamma = norms if t == 0 else [min(*pair) for pair in zip(gamma, norms, strict=True)]
        else:
            for i, norm in enumerate(norms):
                h = min(ratio * gamma[i] / norm, 1.0)
                arrays[i] = h * arrays[i]
                gamma[i] = decay * gamma[i] + (1 - decay) * h * norm
        out.append(arrays)
    return out


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("ratio", "decay"), [(1.05, 0.98), (2.0, 0.5)])
@pytest.mark.parametrize(("warmup", "most"), [(1, 1.0), (30, 20.0)])
def test_follows_the_paper(seed: int, ratio: float, decay: float, warmup: int, most: float) -> None:
    steps = gradients(120, seed)
    adagc = AdaGC(ratio=ratio, ema_decay=decay, warmup_steps=warmup, warmup_max_norm=most)
    expected = by_the_paper(steps, ratio=ratio, decay=decay, warmup=warmup, most=most)
    for step, arrays in zip(steps, expected, strict=True):
        stats, got = clipped(adagc, step)
        for gradient, array in zip(got, arrays, strict=True):
            numpy.testing.assert_allclose(gradient.numpy(), array, rtol=2e-5)
        left = math.sqrt(sum((array**2).sum() for array in arrays))
        raw = math.sqrt(sum((gradient.double() ** 2).sum().item() for gradient in step))
        assert stats.raw_norm == pytest.approx(raw, rel=1e-6)
        assert stats.clipped_norm == pytest.approx(left, rel=1e-5)
        changed = [not torch.equal(a, b) for a, b in zip(got, step, strict=True)]
        assert stats.was_clipped == any(changed)
        assert stats.metrics == {"train/adagc_clipped_share": sum(changed) / 4}


def test_a_spike_of_one_tensor_leaves_the_others_as_they_are() -> None:
    adagc = AdaGC(warmup_steps=2, warmup_max_norm=1e6)
    step = [torch.randn(shape) for shape in SHAPES]
    for _ in range(3):
        _, got = clipped(adagc, step)
        assert all(map(torch.equal, got, step))
    stats, got = clipped(adagc, [step[0], step[1] * 1000, *step[2:]])
    assert stats.was_clipped
    assert all(torch.equal(got[i], step[i]) for i in (0, 2, 3))
    torch.testing.assert_close(got[1], step[1] * 1.05)


@pytest.mark.parametrize("absent", [None, 0.0], ids=["no gradient", "a gradient of zero"])
@pytest.mark.parametrize("when", [range(1), range(2, 3), range(6), range(5, 9)], ids=str)
def test_a_tensor_without_a_gradient_in_some_steps_is_not_clipped_for_it(
    absent: float | None, when: range
) -> None:
    step = [torch.randn(shape) for shape in SHAPES]
    adagc = AdaGC(warmup_steps=4, warmup_max_norm=1e6)
    for number in range(12):
        missing = None if absent is None else step[1] * absent
        _, got = clipped(adagc, [step[0], missing, *step[2:]] if number in when else list(step))
        assert number in when or torch.equal(got[1], step[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("when", [3, 30])
def test_gradients_that_are_not_finite_are_left_and_leave_no_trace(bad: float, when: int) -> None:
    steps = gradients(50, 1)
    clean, hit = (AdaGC(warmup_steps=10, warmup_max_norm=20.0) for _ in range(2))
    for number, step in enumerate(steps):
        if number == when:
            broken = [step[0], torch.full((5,), bad), *step[2:]]
            stats, got = clipped(hit, broken)
            assert not stats.finite and not stats.was_clipped
            assert torch.equal(got[0], step[0])
        assert clipped(hit, step)[0] == clipped(clean, step)[0]


@pytest.mark.parametrize("cut", [0, 7, 20, 33])
def test_resuming_from_saved_state_gives_the_same_decisions(cut: int) -> None:
    steps = gradients(50, 2)
    whole, first, second = (AdaGC(warmup_steps=20, warmup_max_norm=20.0) for _ in range(3))
    expected = [clipped(whole, step)[0] for step in steps]
    got = [clipped(first, step)[0] for step in steps[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert got + [clipped(second, step)[0] for step in steps[cut:]] == expected


def test_a_saved_state_is_not_changed_by_what_follows() -> None:
    adagc = AdaGC()
    steps = gradients(2, 3)
    clipped(adagc, steps[0])
    saved = adagc.state_dict()
    before = json.dumps(saved)
    clipped(adagc, [gradient / 9 for gradient in steps[1]])
    assert json.dumps(saved) == before != json.dumps(adagc.state_dict())


def test_no_gradients_at_all_are_nothing_to_clip() -> None:
    assert AdaGC().clip([nn.Parameter(torch.ones(3))]) == ClipStats(
        0.0, 0.0, was_clipped=False, finite=True
    )
