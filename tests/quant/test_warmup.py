from __future__ import annotations

import math
import subprocess
import sys

import pytest

from wrinklefree.quant.settings import LambdaWarmupSettings
from wrinklefree.quant.warmup import quantization_lambda


def settings_of(steps: int, schedule: str) -> LambdaWarmupSettings:
    return LambdaWarmupSettings.model_validate({"warmup_steps": steps, "schedule": schedule})


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 3, 7, 1000])
def test_grows_from_zero_to_exactly_one(schedule: str, steps: int) -> None:
    values = [quantization_lambda(step, settings_of(steps, schedule)) for step in range(steps + 3)]
    assert values[0] == 0.0
    assert values == sorted(values)
    assert all(value < 1.0 for value in values[:steps])
    assert values[steps:] == [1.0, 1.0, 1.0]


def test_schedules_have_their_shapes() -> None:
    for step in range(100):
        assert quantization_lambda(step, settings_of(100, "linear")) == pytest.approx(step / 100)
        expected = math.sin(math.pi * step / 200) ** 2
        assert quantization_lambda(step, settings_of(100, "cosine")) == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 3, 1000])
def test_a_hard_schedule_has_nothing_between_zero_and_one(steps: int) -> None:
    values = [quantization_lambda(step, settings_of(steps, "hard")) for step in range(steps + 3)]
    assert values == [0.0] * steps + [1.0] * 3


@pytest.mark.parametrize("schedule", ["linear", "cosine", "hard"])
def test_without_warmup_the_first_step_is_fully_quantized(schedule: str) -> None:
    assert quantization_lambda(0, settings_of(0, schedule)) == 1.0


def test_needs_no_torch() -> None:
    code = "import sys, wrinklefree.quant.warmup; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
