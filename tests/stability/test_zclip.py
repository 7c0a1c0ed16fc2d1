from __future__ import annotations

import json
import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wrinklefree.stability import ZClip
from wrinklefree.stability.clip import ClipStats


def mean_and_deviation(stats: ClipStats) -> tuple[float, float]:
    return stats.metrics["train/zclip_ema_mean"], stats.metrics["train/zclip_ema_std"]


def with_gradient(*gradients: torch.Tensor) -> list[nn.Parameter]:
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        parameters.append(parameter)
    return parameters


def by_the_paper(
    norms: list[float], *, threshold: float, decay: float, warmup: int
) -> list[tuple[float, float, float]]:
    """(clipped norm, mean, deviation) after each step: Algorithm 1 with reciprocal clipping.

    A spike of the warmup is clipped by the same rule around the median of the norms before it.
    """
    out, seen, mean, variance = [], [], 0.0, 0.0
    for step, norm in enumerate(norms):
        if step < warmup:
            middle = numpy.median(seen) if step >= 4 else math.inf
            if norm > 8 * middle:
                around = 1.4826 * numpy.median(numpy.abs(numpy.array(seen) - middle))
                z = (norm - middle) / (around + 1e-6)
                norm = middle + threshold**2 * around / z if z > threshold else norm
            seen.append(norm)
            mean = sum(seen) / len(seen)
            variance = sum((value - mean) ** 2 for value in seen) / len(seen)
            out.append((norm, mean, math.sqrt(variance)))
            continue
        z = (norm - mean) / (math.sqrt(variance) + 1e-6)
        if z > threshold:
            norm = mean + (threshold / (z / threshold)) * math.sqrt(variance)
        mean = decay * mean + (1 - decay) * norm
        variance = decay * variance + (1 - decay) * (norm - mean) ** 2
        out.append((norm, mean, math.sqrt(variance)))
    return out


def noisy_norms(count: int, seed: int) -> list[float]:
    """Around 1 with spikes of up to a hundredfold."""
    generator = torch.Generator().manual_seed(seed)
    base = 1 + 0.2 * torch.randn(count, generator=generator)
    spikes = torch.rand(count, generator=generator) < 0.1
    factor = torch.where(spikes, 1 + 99 * torch.rand(count, generator=generator), 1.0)
    return (base.abs() * factor).tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [2.0, 3.0])
@pytest.mark.parametrize("decay", [0.9, 0.99])
@pytest.mark.parametrize("warmup", [1, 25])
def test_follows_the_paper(seed: int, threshold: float, decay: float, warmup: int) -> None:
    norms = noisy_norms(300, seed)
    zclip = ZClip(z_threshold=threshold, ema_decay=decay, warmup_steps=warmup, reopen_after=10_000)
    expected = by_the_paper(norms, threshold=threshold, decay=decay, warmup=warmup)
    clips = 0
    for norm, (clipped, mean, deviation) in zip(norms, expected, strict=True):
        stats = zclip.observe(norm)
        clips += stats.was_clipped
        got = (stats.clipped_norm, *mean_and_deviation(stats))
        assert got == pytest.approx((clipped, mean, deviation), rel=1e-9, abs=1e-12)
    assert clips > 5


def test_clips_the_gradients_themselves_and_keeps_their_direction() -> None:
    zclip = ZClip(warmup_steps=4)
    for norm in (1.0, 1.2, 0.8, 1.0):
        zclip.observe(norm)
    grads = [torch.randn(7, 3) * 30, torch.randn(5) * 30]
    parameters = [*with_gradient(*grads), nn.Parameter(torch.ones(2))]
    stats = zclip.clip(parameters)
    after = torch.cat([p.grad.flatten() for p in parameters[:2]])
    before = torch.cat([gradient.flatten() for gradient in grads])
    assert stats.was_clipped and stats.clipped_norm < 2 < stats.raw_norm
    assert before.norm().item() == pytest.approx(stats.raw_norm, rel=1e-6)
    assert after.norm().item() == pytest.approx(stats.clipped_norm, rel=1e-5)
    torch.testing.assert_close(after / after.norm(), before / before.norm())


def test_gradients_that_are_no_outlier_stay_bit_identical() -> None:
    zclip = ZClip(warmup_steps=3)
    for norm in (1.0, 3.0, 2.0):
        zclip.observe(norm)
    gradient = torch.tensor([1.5, 2.0])
    (parameter,) = with_gradient(gradient)
    stats = zclip.clip([parameter])
    assert not stats.was_clipped and stats.clipped_norm == stats.raw_norm == 2.5
    assert torch.equal(parameter.grad, gradient)


@settings(max_examples=60, deadline=None)
@given(
    norms=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=60),
    threshold=st.floats(0.1, 5.0),
    decay=st.floats(0.0, 1.0, exclude_max=True),
    warmup=st.integers(1, 5),
)
def test_never_increases_the_norm_and_never_turns_it_negative(
    norms: list[float], threshold: float, decay: float, warmup: int
) -> None:
    zclip = ZClip(z_threshold=threshold, ema_decay=decay, warmup_steps=warmup)
    for norm in norms:
        stats = zclip.observe(norm)
        assert 0 <= stats.clipped_norm <= stats.raw_norm == norm
        assert stats.was_clipped == (stats.clipped_norm < norm)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1.0, 1e6))
def test_scaling_all_gradients_scales_the_result(seed: int, scale: float) -> None:
    small, large = ZClip(), ZClip()
    for norm in noisy_norms(120, seed):
        a, b = small.observe(norm), large.observe(norm * scale)
        # Not to the bit: the 1e-6 in the denominator has a scale.
        assert b.clipped_norm == pytest.approx(a.clipped_norm * scale, rel=1e-4)
        deviation = mean_and_deviation(a)[1] * scale
        assert mean_and_deviation(b)[1] == pytest.approx(deviation, rel=1e-3, abs=1e-3 * scale)


def test_a_larger_outlier_is_clipped_harder() -> None:
    clipped = []
    for spike in (5.0, 50.0, 500.0):
        zclip = ZClip(warmup_steps=5)
        for norm in (1.0, 1.1, 0.9, 1.2, 0.8):
            zclip.observe(norm)
        clipped.append(zclip.observe(spike).clipped_norm)
    assert clipped == sorted(clipped, reverse=True)
    assert clipped[-1] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("when", [3, 60])
def test_a_norm_that_is_not_finite_is_reported_and_leaves_no_trace(bad: float, when: int) -> None:
    norms = noisy_norms(100, 0)
    clean, hit = ZClip(), ZClip()
    for step, norm in enumerate(norms):
        if step == when:
            stats = hit.observe(bad)
            assert not stats.finite and not stats.was_clipped
        assert hit.observe(norm) == clean.observe(norm)


def test_gradients_that_are_not_finite_are_left_as_they_are() -> None:
    zclip = ZClip(warmup_steps=1)
    zclip.observe(1.0)
    gradient = torch.tensor([1.0, math.inf, 2.0])
    (parameter,) = with_gradient(gradient)
    assert not zclip.clip([parameter]).finite
    assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("reopen_after", [5, 20])
def test_after_a_lasting_change_of_scale_it_adapts(reopen_after: int) -> None:
    zclip = ZClip(reopen_after=reopen_after)
    norms = [1 + 0.05 * math.sin(step) for step in range(600)]
    for norm in norms[:100]:
        zclip.observe(norm)
    shifted = [zclip.observe(3 * norm) for norm in norms[100:]]
    assert [stats.was_clipped for stats in shifted[:reopen_after]] == [True] * reopen_after
    assert not any(stats.was_clipped for stats in shifted[reopen_after:])
    assert mean_and_deviation(shifted[-1])[0] == pytest.approx(3.0, rel=0.02)


def test_clips_that_are_not_in_a_row_do_not_reopen_the_warmup() -> None:
    zclip = ZClip(reopen_after=2)
    for step in range(25):
        zclip.observe(1 + 0.1 * (step % 3))
    for _ in range(10):
        assert zclip.observe(50.0).was_clipped
        assert not zclip.observe(1.1).was_clipped
    assert zclip.observe(50.0).was_clipped


@pytest.mark.parametrize("cut", [0, 7, 25, 60, 93, 110])
def test_resuming_from_saved_state_gives_the_same_decisions(cut: int) -> None:
    steady = [1 + 0.05 * math.sin(step) for step in range(90)]
    norms = [*steady, *(30 * norm for norm in steady), *noisy_norms(60, 2)]
    whole = ZClip(reopen_after=6)
    expected = [whole.observe(norm) for norm in norms]
    first = ZClip(reopen_after=6)
    got = [first.observe(norm) for norm in norms[:cut]]
    second = ZClip(reopen_after=6)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.observe(norm) for norm in norms[cut:]]
    assert got == expected


def test_a_saved_state_is_not_changed_by_what_follows() -> None:
    zclip = ZClip()
    zclip.observe(1.0)
    saved = zclip.state_dict()
    zclip.observe(2.0)
    assert saved["gathered"] == [1.0]


@pytest.mark.parametrize(
    "change", [{"z_threshold": 30.0}, {"ema_decay": 0.5}, {"warmup_steps": 90}, {"reopen_after": 1}]
)
def test_each_setting_changes_what_is_clipped(change: dict[str, object]) -> None:
    norms = [*noisy_norms(60, 3), *(3 * norm for norm in noisy_norms(60, 4))]
    plain, changed = ZClip(), ZClip(**change)
    assert [plain.observe(n).clipped_norm for n in norms] != [
        changed.observe(n).clipped_norm for n in norms
    ]


def test_a_spike_while_statistics_are_gathered_hides_no_later_one() -> None:
    norms = (1 + 0.1 * torch.randn(100)).tolist()
    zclip, untouched = ZClip(), ZClip()
    got = [zclip.observe(norm * {5: 100, 60: 50}.get(step, 1)) for step, norm in enumerate(norms)]
    assert [step for step, stats in enumerate(got) if stats.clipped_norm > 2] == []
    assert got[5].was_clipped and got[60].was_clipped and got[5].z_score > 3
    for norm in norms:
        usual = untouched.observe(norm)
    assert mean_and_deviation(got[-1]) == pytest.approx(mean_and_deviation(usual), abs=0.05)


@pytest.mark.parametrize("level", [20.0, 100.0])
def test_a_scale_that_changes_while_statistics_are_gathered_is_adapted_to(level: float) -> None:
    norms = [1.0, 1.1, 0.9, 1.2, 0.8] + [level * (1 + 0.1 * math.sin(step)) for step in range(60)]
    zclip = ZClip(reopen_after=5)
    clipped = [zclip.observe(norm).was_clipped for norm in norms]
    assert clipped == [False] * 5 + [True] * 5 + [False] * 55


FALLING = {
    "linear": [10 - 9 * step / 24 for step in range(25)],
    "exponential": [10 ** (1 - step / 24) for step in range(25)],
    "as 1 / t": [max(1.0, 10 / (1 + step)) for step in range(25)],
}


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("name", FALLING)
def test_norms_that_fall_from_a_high_start_are_no_spikes(name: str, noise: float) -> None:
    zclip = ZClip()
    for norm, factor in zip(FALLING[name], torch.randn(25).mul(noise).exp().tolist(), strict=True):
        assert not zclip.observe(norm * factor).was_clipped


@pytest.mark.parametrize(("sigma", "most"), [(0.2, 0), (0.35, 0), (0.5, 10)])
def test_noise_is_hardly_ever_taken_for_a_spike(sigma: float, most: int) -> None:
    """Of 2,000 warmups of log-normal norms, at most so many in which something is clipped."""
    warmups = torch.randn(2000, 25, generator=torch.Generator().manual_seed(0)).mul(sigma).exp()
    found = 0
    for norms in warmups.tolist():
        zclip = ZClip()
        found += sum(zclip.observe(norm).was_clipped for norm in norms) > 0
    assert found <= most


def test_gradients_of_zero_do_not_make_the_first_real_one_a_spike() -> None:
    zclip = ZClip()
    for norm in [0.0] * 6:
        zclip.observe(norm)
    assert not zclip.observe(1.0).was_clipped
