from __future__ import annotations

import json
import math

import numpy
import pytest

from wrinklefree.stability.settings import SpikeSettings
from wrinklefree.stability.spikes import Spike, SpikeDetector


def detector(**change: object) -> SpikeDetector:
    settings = SpikeSettings.model_validate(change)
    return SpikeDetector(**settings.model_dump(exclude={"enabled"}))


def losses(steps: int, seed: int, tails: float = 30.0) -> list[float]:
    """A loss that falls as in a real training, with Student's noise of 0.08 nats."""
    generator = numpy.random.default_rng(seed)
    t = numpy.arange(steps)
    curve = 2.5 + 4 * numpy.exp(-t / 150) + 2 / numpy.sqrt(1 + t / 50)
    noise = generator.standard_t(tails, steps) * math.sqrt((tails - 2) / tails)
    return (curve + 0.08 * noise).tolist()


def found(values: list[float], **change: object) -> list[int]:
    watching = detector(**change)
    return [step for step, loss in enumerate(values) if watching.observe(step, loss)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("height", [1.5, 5.0, 100.0])
def test_planted_spikes_are_found_and_nothing_else(seed: int, height: float) -> None:
    values = losses(600, seed)
    planted = [300, 301, 302, 450, 599]
    for step in planted:
        values[step] += height
    assert found(values) == planted


@pytest.mark.parametrize("seed", range(3))
def test_deviations_are_those_of_the_median_and_mad(seed: int) -> None:
    values, watching = losses(680, seed, tails=3)[600:], detector(window=20, threshold=1.0)
    spikes = [watching.observe(step, loss) for step, loss in enumerate(values)]
    assert sum(spike is not None for spike in spikes) > 3
    for step, spike in enumerate(spikes):
        before = numpy.array(values[max(0, step - 20) : step])
        if len(before) < 20:
            assert spike is None
            continue
        middle = numpy.median(before)
        above = (values[step] - middle) / (1.4826 * numpy.median(abs(before - middle)))
        assert (spike is not None) == (above > 1.0)
        assert spike is None or spike.deviations == pytest.approx(above)


@pytest.mark.parametrize(("tails", "most"), [(30.0, 0), (10.0, 1)])
def test_noise_hardly_ever_gives_an_alarm(tails: float, most: int) -> None:
    """Of 20,000 losses."""
    assert sum(len(found(losses(2000, seed, tails))) for seed in range(10)) <= most


def test_slow_drifts_up_and_fast_falls_give_no_alarm() -> None:
    noise = numpy.random.default_rng(0).normal(0, 0.05, 1000)
    t = numpy.arange(1000)
    assert found((3 + 0.002 * t + noise).tolist()) == []
    assert found((9 - 6 * (t > 300) + noise).tolist()) == []
    assert found([3.0] * 200) == []


def test_a_loss_that_stays_high_is_the_usual_one_after_half_a_window() -> None:
    noise = numpy.random.default_rng(1).normal(0, 0.05, 300)
    alarms = found((3 + 2 * (numpy.arange(300) >= 100) + noise).tolist(), window=40)
    assert alarms == list(range(100, 100 + len(alarms)))
    assert 15 <= len(alarms) <= 22


def test_a_spike_above_losses_that_are_all_alike() -> None:
    watching = detector(window=5)
    for step in range(5):
        assert watching.observe(step, 2.0) is None
    assert watching.observe(5, 1.9) is None
    assert watching.observe(6, 2.1) == Spike(6, 2.1, math.inf, range(7, 7))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_no_trace(bad: float) -> None:
    values = losses(500, 0)[400:]
    values[80] += 9
    clean, hit = detector(), detector()
    for step, loss in enumerate(values):
        if step == 60:
            assert hit.observe(step, bad) is None
        assert hit.observe(step, loss) == clean.observe(step, loss)


def test_a_rollback_leaves_out_the_steps_up_to_the_spike() -> None:
    values = losses(100, 0)
    values[70] += 9
    watching = detector(rollback=True, skip_steps=4)
    spikes = [spike for step, loss in enumerate(values) if (spike := watching.observe(step, loss))]
    assert [spike.leave_out for spike in spikes] == [range(67, 71)]
    assert [step for step in range(100) if watching.leaves_out(step)] == [67, 68, 69, 70]


def test_a_rollback_of_more_steps_than_were_taken_begins_with_the_first() -> None:
    watching = detector(window=5, rollback=True, skip_steps=50)
    spike = [watching.observe(step, loss) for step, loss in enumerate([1.0] * 5 + [9.0])][-1]
    assert spike and spike.leave_out == range(6)


def test_a_loop_that_goes_back_twice_to_the_same_checkpoint_leaves_out_both() -> None:
    """The rows of two steps spike; checkpoints are of every 20 steps."""
    usual, culprits = losses(140, 3), {93, 97}
    watching = detector(rollback=True, skip_steps=2)
    checkpoints: dict[int, str] = {}
    step, taken, goings_back = 0, [], 0
    while step < 140:
        if step % 20 == 0:
            checkpoints[step] = json.dumps(watching.state_dict())
        if not watching.leaves_out(step):
            taken.append(step)
            loss = usual[step] + 5 * (step in culprits)
            if spike := watching.observe(step, loss):
                goings_back += 1
                step = max(saved for saved in checkpoints if saved <= spike.leave_out.start)
                watching.load_state_dict(json.loads(checkpoints[step]))
                taken = [other for other in taken if other < step]
                continue
        step += 1
    assert goings_back == 2
    assert sorted(set(range(140)) - set(taken)) == [92, 93, 96, 97]


@pytest.mark.parametrize("cut", [10, 60, 95])
def test_resuming_from_saved_state_gives_the_same_decisions(cut: int) -> None:
    values = losses(200, 4)
    values[90] += 9
    values[150] += 9
    whole, first, second = (detector(rollback=True) for _ in range(3))
    expected = [whole.observe(step, loss) for step, loss in enumerate(values)]
    got = [first.observe(step, loss) for step, loss in enumerate(values[:cut])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [second.observe(step, values[step]) for step in range(cut, 200)]
    assert got == expected
    assert second.leaves_out(90) and second.leaves_out(150)


@pytest.mark.parametrize(
    "change", [{"window": 20}, {"threshold": 60.0}, {"rollback": True}, {"skip_steps": 3}]
)
def test_each_setting_changes_what_is_decided(change: dict[str, object]) -> None:
    values = losses(520, 5)[400:]
    values[30] += 2
    values[100] += 2
    base = {"rollback": "skip_steps" in change}
    plain, changed = detector(**base), detector(**base | change)
    assert [plain.observe(step, loss) for step, loss in enumerate(values)] != [
        changed.observe(step, loss) for step, loss in enumerate(values)
    ]
