from __future__ import annotations

import warnings
from typing import Any

import pytest
from pydantic import ValidationError

from wrinklefree.optim.build import OPTIMIZERS
from wrinklefree.optim.settings import OptimizerSettings, UnusualLearningRateWarning
from wrinklefree.schema.reads import ALTERNATIVES

MUON = {"name": "muon", "scale": "original", "lr": 2e-3, "adamw_lr": 3e-4}
ADAMW = {"name": "adamw", "lr": 3e-4}
MUONS = ["muon", "muonclip", "normuon", "muon8bit"]


def parse(base: dict[str, object], **change: object) -> Any:
    """The block of the optimizer that ``name`` chooses."""
    block = base | change
    name = block.pop("name")
    return OptimizerSettings.model_validate({"name": name, name: block}).chosen


@pytest.mark.parametrize("name", MUONS)
@pytest.mark.parametrize("rate", [3e-4, 9.9e-4, 3.1e-3, 0.02])
def test_muon_original_refuses_the_rate_of_another_optimizer(name: str, rate: float) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(MUON, name=name, lr=rate)
    (error,) = caught.value.errors()
    message = error["msg"]
    assert f"lr {rate:g}" in message
    assert "0.001..0.003" in message
    assert "allow_unusual_lr: true" in message


@pytest.mark.parametrize("name", MUONS)
@pytest.mark.parametrize("rate", [1e-3, 2e-3, 3e-3])
def test_muon_original_accepts_its_own_range_and_both_ends(name: str, rate: float) -> None:
    assert parse(MUON, name=name, lr=rate).lr == rate


@pytest.mark.parametrize("rate", [1e-6, 1.0])
def test_allow_unusual_lr_silences_every_guard(rate: float) -> None:
    for base in (MUON, MUON | {"scale": "match_rms"}):
        assert parse(base, lr=rate, adamw_lr=rate, allow_unusual_lr=True).lr == rate
    assert parse(ADAMW, lr=rate, allow_unusual_lr=True).lr == rate


@pytest.mark.parametrize("rate", [4e-5, 1.1e-2])
def test_muon_match_rms_warns_outside_its_range(rate: float) -> None:
    with pytest.warns(UnusualLearningRateWarning, match=f"^lr {rate:g} .*match_rms"):
        assert parse(MUON, scale="match_rms", lr=rate).lr == rate


@pytest.mark.parametrize("rate", [4e-5, 2e-3])
def test_adamw_warns_outside_its_range(rate: float) -> None:
    with pytest.warns(UnusualLearningRateWarning, match=f"^lr {rate:g} .*AdamW"):
        parse(ADAMW, lr=rate)


@pytest.mark.parametrize("rate", [9e-5, 2.9e-4, 1.1e-2])
def test_adamw_beside_muon_warns_outside_its_range(rate: float) -> None:
    with pytest.warns(UnusualLearningRateWarning, match=f"^adamw_lr {rate:g} .*beside Muon"):
        parse(MUON, adamw_lr=rate)


@pytest.mark.parametrize("name", ["apollo", "apollo_mini"])
@pytest.mark.parametrize(("key", "rate"), [("lr", 0.02), ("lr", 1e-5), ("adamw_lr", 1.1e-2)])
def test_apollo_warns_outside_its_ranges(name: str, key: str, rate: float) -> None:
    with pytest.warns(UnusualLearningRateWarning, match=f"^{key} {rate:g} .*APOLLO"):
        parse({"name": name}, **{key: rate})


MATCH_RMS = MUON | {"scale": "match_rms"}


@pytest.mark.parametrize(
    ("base", "key", "rates"),
    [
        (ADAMW, "lr", (5e-5, 1e-3)),
        (ADAMW | {"name": "adamw8bit"}, "lr", (5e-5, 1e-3)),
        (MATCH_RMS, "lr", (5e-5, 1e-2)),
        (MATCH_RMS, "adamw_lr", (3e-4, 1e-2)),
        (MATCH_RMS | {"name": "normuon"}, "adamw_lr", (3e-4, 1e-2)),
        ({"name": "apollo"}, "lr", (5e-5, 1e-2)),
    ],
)
def test_the_ends_of_a_range_are_usual(
    base: dict[str, object], key: str, rates: tuple[float, float]
) -> None:
    for rate in rates:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parse(base, **{key: rate})
        for unusual in (0.99 * rates[0], 1.01 * rates[1]):
            with pytest.warns(UnusualLearningRateWarning, match=f"^{key} "):
                parse(base, **{key: unusual})


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.0},
        {"momentum": 1.5},
        {"scale": "rms"},
        {"weight_decay": -0.1},
        {"adamw_betas": [0.9]},
        {"lr": "2e-3"},
        {"nesterov": 1},
        {"coefficients": "newton"},
        {"compute": "float16"},
        {"name": "normuon", "row_decay": 1.0},
        {"name": "muon8bit", "quantization": "log"},
        {"name": "apollo", "rank": 0, "scale": "match_rms"},
        {"learning_rate": 2e-3},
        {"name": "lion"},
    ],
)
def test_wrong_values_unknown_keys_and_silent_conversions_are_refused(
    change: dict[str, object],
) -> None:
    with pytest.raises(ValidationError):
        parse(MUON, **change)


def test_muonclip_has_no_nesterov_and_muon_no_threshold() -> None:
    with pytest.raises(ValidationError, match="nesterov"):
        parse(MUON, name="muonclip", nesterov=False)
    with pytest.raises(ValidationError, match="qk_clip_threshold"):
        parse(MUON, qk_clip_threshold=50.0)


NAMES = sorted(OPTIMIZERS)


def test_an_optimizer_has_a_name_a_block_and_a_builder() -> None:
    blocks = set(OptimizerSettings.model_fields) - {"name"}
    assert blocks == set(ALTERNATIVES["optimizer"]) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_alone_chooses_an_optimizer_with_usual_rates(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = OptimizerSettings.model_validate({"name": name})
    assert settings.chosen is getattr(settings, name)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_stands_beside_any_choice(name: str) -> None:
    blocks = {other: {"lr": 9e-4} for other in NAMES}
    settings = OptimizerSettings.model_validate({"name": name, **blocks})
    assert settings.chosen.lr == 9e-4


@pytest.mark.parametrize("name", ["muon", "muonclip"])
def test_a_block_that_is_not_chosen_is_validated(name: str) -> None:
    with pytest.raises(ValidationError, match="momentum"):
        OptimizerSettings.model_validate({"name": "adamw", name: {"momentum": 2.0}})
