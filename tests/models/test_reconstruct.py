from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.calibration import calibrate_subln
from wrinklefree.models.forward import hidden_states
from wrinklefree.models.reconstruct import _WARMUP_STEPS, reconstruct_layers
from wrinklefree.models.settings import ReconstructSettings
from wrinklefree.models.states import captured_states
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.quant.bitlinear import set_quantization_lambda

Tiny = Callable[..., PreTrainedModel]
MakeBatch = Callable[..., Batch]
SETTINGS = ReconstructSettings(kind="layers", precision="fp32", epochs=8)


@pytest.fixture(params=["llama", "qwen3"])
def dense(request: pytest.FixtureRequest, tiny: Tiny) -> PreTrainedModel:
    return tiny(request.param)


@pytest.fixture
def rows(batch: MakeBatch) -> list[Batch]:
    return [batch(rows=2), batch(rows=2), batch(rows=1)]


def made_ternary(
    dense: PreTrainedModel, rows: list[Batch], *, subln: bool = True
) -> PreTrainedModel:
    model = copy.deepcopy(dense)
    insert_bitlinear(model)
    if subln:
        insert_subln(model)
        calibrate_subln(model, rows, "calibrated")
    return model


def errors_of(model: PreTrainedModel, dense: PreTrainedModel, rows: list[Batch]) -> list[float]:
    """Of the whole models, in float64: what stands behind each layer."""
    sums = torch.zeros(2, dtype=torch.float64)
    for batch in rows:
        mask = causal_document_mask(batch.document_ids_BT)
        behind = []
        for one in (dense, model):
            with torch.no_grad(), captured_states(one, range(2)) as states:
                hidden_states(one, batch.tokens_BT, batch.positions_BT, mask)
            behind.append([states[index].double() for index in range(2)])
        for index, (wanted, given) in enumerate(zip(*behind, strict=True)):
            error = (given - wanted).norm(dim=-1) ** 2 / wanted.norm(dim=-1) ** 2
            sums[index] += error[batch.document_ids_BT >= 0].sum()
    return (sums / sum(int((batch.document_ids_BT >= 0).sum()) for batch in rows)).tolist()


@pytest.mark.parametrize("subln", [True, False])
def test_errors_are_those_of_the_whole_model_and_fall_in_every_layer(
    dense: PreTrainedModel, rows: list[Batch], tmp_path: Path, subln: bool
):
    model = made_ternary(dense, rows, subln=subln)
    set_quantization_lambda(model, 1.0)
    before = errors_of(model, dense, rows)
    logged: list[tuple[int, dict[str, float]]] = []
    facts = reconstruct_layers(model, rows, SETTINGS, tmp_path, lambda *it: logged.append(it))
    found = facts["layers"]
    assert logged == [(0, found[0]), (1, found[1])]
    assert found[0]["error_before"] == pytest.approx(before[0], rel=1e-5)
    assert [each["error_after"] for each in found] == pytest.approx(
        errors_of(model, dense, rows), rel=1e-5
    )
    assert all(each["error_after"] < 0.7 * each["error_before"] for each in found)
    assert found[1]["error_before"] < before[1]  # on what the trained layer before it gives
    assert facts["tokens"] == sum(int((batch.document_ids_BT >= 0).sum()) for batch in rows)


def test_latent_weights_are_moved_and_not_snapped_to_codes(
    tiny: Tiny, rows: list[Batch], tmp_path: Path
):
    model = made_ternary(tiny(), rows)
    reconstruct_layers(model, rows, SETTINGS, tmp_path)
    weight = model.get_submodule("model.layers.0.mlp.up_proj").get_parameter("weight")
    assert weight.unique().numel() > 0.99 * weight.numel()


def test_a_killed_run_goes_on_behind_its_last_layer_and_ends_with_the_same_bytes(
    dense: PreTrainedModel, rows: list[Batch], tmp_path: Path
):
    whole, killed, resumed = (made_ternary(dense, rows) for _ in range(3))
    reconstruct_layers(whole, rows, SETTINGS, tmp_path / "whole")

    def kill(layer: int, errors: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct_layers(killed, rows, SETTINGS, tmp_path / "killed", kill)
    (kept,) = (tmp_path / "killed").iterdir()
    written = kept.stat().st_mtime_ns
    reconstruct_layers(resumed, rows, SETTINGS, tmp_path / "killed")
    assert kept.stat().st_mtime_ns == written
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_the_rate_of_a_layer_rises_and_falls_to_nothing(
    tiny: Tiny, rows: list[Batch], tmp_path: Path
):
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda made, *_: rates.append(made.param_groups[0]["lr"])
    )
    settings = SETTINGS.model_copy(update={"epochs": 20})
    try:
        facts = reconstruct_layers(made_ternary(tiny(), rows), rows, settings, tmp_path)
    finally:
        hook.remove()
    steps = len(rates) // len(facts["layers"])
    expected = [
        settings.lr * min(1.0, (step + 1) / _WARMUP_STEPS) * (1 - step / steps)
        for step in range(steps)
    ]
    assert rates == pytest.approx(expected * len(facts["layers"])) and steps > _WARMUP_STEPS


def test_padding_teaches_nothing(tiny: Tiny, rows: list[Batch], tmp_path: Path):
    dense = tiny()
    model, other = made_ternary(dense, rows), made_ternary(dense, rows)
    reconstruct_layers(model, rows, SETTINGS, tmp_path / "one")
    for batch in rows:
        padding = batch.document_ids_BT < 0
        assert padding.any()
        batch.tokens_BT[padding] = (batch.tokens_BT[padding] + 1) % 97
    reconstruct_layers(other, rows, SETTINGS, tmp_path / "other")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("change", [{"epochs": 3}, {"lr": 0.001}, {"precision": "bfloat16"}])
def test_every_setting_has_its_effect(
    tiny: Tiny, rows: list[Batch], tmp_path: Path, change: dict[str, Any]
):
    dense = tiny()
    errors = []
    for number, settings in enumerate([SETTINGS, SETTINGS.model_copy(update=change)]):
        model = made_ternary(dense, rows)
        facts = reconstruct_layers(model, rows, settings, tmp_path / str(number))
        errors.append(facts["layers"][1]["error_after"])
    assert errors[0] != errors[1]
    assert facts["precision"] == change.get("precision", "fp32")


def test_an_error_that_is_not_finite_is_refused(tiny: Tiny, rows: list[Batch], tmp_path: Path):
    settings = SETTINGS.model_copy(update={"lr": 1e30})
    with pytest.raises(UserError, match=r"error of layer 0 went from .* to nan; lower subln.recon"):
        reconstruct_layers(made_ternary(tiny(), rows), rows, settings, tmp_path)
