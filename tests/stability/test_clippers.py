from __future__ import annotations

import inspect
import math
import subprocess
import sys
from typing import get_args

import pytest
import torch
from torch import nn

from wrinklefree.stability.clippers import CLIPPERS, build_clipper
from wrinklefree.stability.fixed import FixedClip
from wrinklefree.stability.settings import ClippingSettings
from wrinklefree.stability.zclip import ZClip


def model_with_gradients(scale: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))
    for parameter in list(model.parameters())[:-1]:  # one has none
        parameter.grad = torch.randn_like(parameter) * scale
    return model


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("max_norm", [0.01, 1.0, 1e6])
def test_fixed_clips_as_torch_does(max_norm: float) -> None:
    model = model_with_gradients(3.0)
    before = gradients(model)
    stats = FixedClip(max_norm=max_norm).clip(model)
    after = gradients(model)
    for gradient, parameter in zip(before, model.parameters(), strict=False):
        parameter.grad = gradient.clone()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    torch.testing.assert_close(after, gradients(model), rtol=1e-4, atol=0)
    assert stats.raw_norm == pytest.approx(norm.item())
    assert stats.was_clipped == (max_norm < norm)
    assert stats.clipped_norm == (max_norm if stats.was_clipped else stats.raw_norm)
    assert stats.was_clipped or all(map(torch.equal, before, after))


def test_none_measures_and_does_nothing_else() -> None:
    clipper = build_clipper(ClippingSettings(name="none"))
    model = model_with_gradients(1e3)
    before = gradients(model)
    stats = clipper.clip(model)
    expected = torch.cat([gradient.flatten() for gradient in before]).double().norm().item()
    assert stats.raw_norm == stats.clipped_norm == pytest.approx(expected, rel=1e-6)
    assert stats.finite and not stats.was_clipped and not stats.metrics
    assert all(map(torch.equal, before, gradients(model)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", CLIPPERS)
def test_no_clipper_touches_gradients_that_are_not_finite(name: str, bad: float) -> None:
    model = model_with_gradients(1e3)
    next(model.parameters()).grad[0, 0] = bad
    before = gradients(model)
    stats = build_clipper(ClippingSettings(name=name)).clip(model)
    assert not stats.finite and not stats.was_clipped
    torch.testing.assert_close(before, gradients(model), rtol=0, atol=0, equal_nan=True)


def test_the_registry_has_what_the_settings_name_with_the_same_defaults() -> None:
    assert set(CLIPPERS) == set(get_args(ClippingSettings.model_fields["name"].annotation))
    for name in ("zclip", "adagc"):
        signature = inspect.signature(CLIPPERS[name])
        defaults = {key: parameter.default for key, parameter in signature.parameters.items()}
        assert defaults == ClippingSettings(name=name).chosen


def test_only_the_block_of_the_chosen_one_counts() -> None:
    settings = ClippingSettings.model_validate(
        {"name": "fixed", "fixed": {"max_norm": 0.5}, "zclip": {"z_threshold": 1.0}}
    )
    clipper = build_clipper(settings)
    assert isinstance(clipper, FixedClip) and clipper.max_norm == 0.5
    default = build_clipper(ClippingSettings())
    assert isinstance(default, ZClip) and default.z_threshold == 3.0


def test_the_package_gives_what_users_import_and_its_settings_load_no_torch() -> None:
    code = """
import sys
import wrinklefree.stability.settings, wrinklefree.stability as stability
assert "torch" not in sys.modules
from wrinklefree.stability import ZClip, LambdaWarmup
assert ZClip(z_threshold=2.0, ema_decay=0.9).z_threshold == 2.0
assert LambdaWarmup.__name__ == "LambdaWarmup" and not hasattr(stability, "Lambda")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
