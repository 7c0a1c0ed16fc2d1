from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.optim.schedule import learning_rate_fraction
from wrinklefree.optim.settings import ScheduleSettings


def fractions(kind: str, warmup: int, final: float, total: int) -> list[float]:
    schedule = ScheduleSettings(kind=kind, warmup_steps=warmup, final_lr_fraction=final)
    return [learning_rate_fraction(step, total, schedule) for step in range(total)]


def test_linear_by_hand() -> None:
    expected = [0.25, 0.5, 0.75, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert fractions("linear", 4, 0.2, 8) == pytest.approx(expected)


def test_cosine_by_hand() -> None:
    root = math.sqrt(0.5)
    decay = [0.5 * (1 + cosine) for cosine in (1, root, 0, -root, -1)]
    assert fractions("cosine", 0, 0.0, 5) == pytest.approx(decay)
    assert fractions("cosine", 1, 0.5, 5) == pytest.approx([0.5 + 0.5 * d for d in decay])


def test_constant_has_no_use_for_a_final_fraction() -> None:
    assert fractions("constant", 2, 0.1, 5) == [0.5, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("share", "decayed"), [(0.2, 2), (0.4, 4), (1.0, 9)])
def test_wsd_by_hand(share: float, decayed: int) -> None:
    schedule = ScheduleSettings(
        kind="wsd", warmup_steps=1, final_lr_fraction=0.1, decay_fraction=share
    )
    values = [learning_rate_fraction(step, 10, schedule) for step in range(10)]
    stable = [1.0] * (10 - decayed)
    falling = [1 - 0.9 * (number + 1) / decayed for number in range(decayed)]
    assert values == pytest.approx(stable + falling)


def test_wsd_decays_the_last_fifth_and_its_warmup_comes_first() -> None:
    values = fractions("wsd", 4, 0.5, 20)
    assert values == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 13, 0.875, 0.75, 0.625, 0.5])
    assert fractions("wsd", 10, 0.0, 11)[-2:] == [1.0, 0.0]


def test_without_warmup_the_first_step_has_the_peak_rate() -> None:
    for kind in ("linear", "cosine", "wsd", "constant"):
        assert fractions(kind, 0, 0.1, 7)[0] == 1.0


@settings(max_examples=50, deadline=None)
@given(
    kind=st.sampled_from(["cosine", "linear", "wsd"]),
    warmup=st.integers(0, 12),
    decay=st.integers(1, 40),
    final=st.floats(0.0, 1.0),
)
def test_rises_to_one_then_falls_to_the_final_fraction(
    kind: str, warmup: int, decay: int, final: float
) -> None:
    values = fractions(kind, warmup, final, max(warmup, 1) + decay)
    peak = max(warmup - 1, 0)
    assert values[peak] == pytest.approx(1.0)
    assert values[-1] == pytest.approx(final)
    assert values[0] > 0
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert all(a >= b - 1e-12 for a, b in zip(values[peak:], values[peak + 1 :], strict=False))


@pytest.mark.parametrize(("warmup", "total"), [(1, 1), (0, 1), (9, 4), (4, 4)])
def test_a_run_no_longer_than_its_warmup_only_warms_up(warmup: int, total: int) -> None:
    expected = [(step + 1) / max(warmup, 1) for step in range(total)]
    assert fractions("cosine", warmup, 0.1, total) == pytest.approx(expected)


def test_the_module_itself_imports_no_torch() -> None:
    code = (
        "import sys, types, pathlib, wrinklefree as w;"
        "p = types.ModuleType('wrinklefree.optim');"
        "p.__path__ = [str(pathlib.Path(w.__file__).parent / 'optim')];"
        "sys.modules['wrinklefree.optim'] = p;"
        "import wrinklefree.optim.schedule; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
