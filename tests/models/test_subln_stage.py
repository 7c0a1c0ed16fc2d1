from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.losses import mean_next_token_loss
from wrinklefree.models.settings import SublnSettings
from wrinklefree.models.subln_stage import insert_subln_stage
from wrinklefree.models.transforms import ModelFormat, ternary
from wrinklefree.quant.settings import QuantizerSettings

Tiny = Callable[..., PreTrainedModel]
MakeBatch = Callable[..., Batch]


@pytest.fixture
def base(tiny: Tiny, tokenizer_folder: Path, tmp_path: Path) -> Path:
    save_model(tmp_path / "base", tiny(), ModelFormat(), tokenizer_folder)
    return tmp_path / "base"


def test_facts_are_the_losses_of_the_models_before_and_after(
    base: Path, tmp_path: Path, batch: MakeBatch
) -> None:
    training, rows = [batch(rows=4), batch(rows=2)], batch(rows=5)
    settings = SublnSettings(gain="calibrated", calibration_rows=6)
    facts = insert_subln_stage(settings, base, iter(training), iter([rows]), tmp_path / "subln")
    dense, _ = load_model(base)
    model, model_format = load_model(tmp_path / "subln")
    assert model_format == ternary()
    assert facts["loss_before"] == mean_next_token_loss(dense, [rows], 0.0)
    assert facts["loss_after_lambda0"] == mean_next_token_loss(model, [rows], 0.0)
    assert facts["loss_after_lambda1"] == mean_next_token_loss(model, [rows], 1.0)
    assert facts["loss_ternary_without_subln"] not in (
        facts["loss_before"],
        facts["loss_after_lambda1"],
    )
    assert (facts["calibration_rows"], facts["held_out_rows"]) == (6, 5)
    assert len(facts["gains"]) == 4


def test_gains_are_fitted_on_training_rows_and_losses_measured_on_held_out_rows(
    base: Path, tmp_path: Path, batch: MakeBatch
) -> None:
    settings = SublnSettings(gain="calibrated", calibration_rows=6)
    one, other, held_out = batch(rows=6), batch(rows=6), batch(rows=6)
    facts = [
        insert_subln_stage(settings, base, [training], [measured], tmp_path / str(number))
        for number, (training, measured) in enumerate(
            [(one, held_out), (one, other), (other, held_out)]
        )
    ]
    assert facts[0]["gains"] == facts[1]["gains"] != facts[2]["gains"]
    before, naive = (
        [found[name] for found in facts] for name in ("loss_before", "loss_ternary_without_subln")
    )
    assert before[0] == before[2] != before[1]
    assert naive[0] == naive[2] != naive[1]


def test_gain_decides_the_gains(base: Path, tmp_path: Path, batch: MakeBatch) -> None:
    rows = batch(rows=6)
    gains = {}
    for gain in ("calibrated", "calibrated_scalar", "ones"):
        settings = SublnSettings.model_validate({"gain": gain, "calibration_rows": 6})
        gains[gain] = insert_subln_stage(settings, base, [rows], [rows], tmp_path / gain)["gains"][
            0
        ]
    assert gains["ones"]["gain_min"] == gains["ones"]["gain_max"] == 1.0
    assert gains["calibrated_scalar"]["gain_min"] == gains["calibrated_scalar"]["gain_max"] != 1.0
    assert gains["calibrated"]["gain_min"] < gains["calibrated"]["gain_max"]


def test_without_a_gain_there_are_no_norms(base: Path, tmp_path: Path, batch: MakeBatch) -> None:
    rows = batch(rows=6)
    settings = SublnSettings(gain="none", calibration_rows=6)
    facts = insert_subln_stage(settings, base, [rows], [rows], tmp_path / "subln")
    model, model_format = load_model(tmp_path / "subln", "ternary")
    assert model_format == ternary(subln=False)
    assert not [name for name, _ in model.named_parameters() if "o_proj.norm" in name]
    assert facts["gains"] == []
    assert facts["loss_after_lambda0"] == facts["loss_before"]
    assert facts["loss_after_lambda1"] == facts["loss_ternary_without_subln"]
    assert facts["loss_after_lambda1"] == mean_next_token_loss(model, [rows], 1.0)


def test_what_llama_cpp_will_not_run_is_said_before_any_training(
    tiny: Tiny,
    tokenizer_folder: Path,
    tmp_path: Path,
    batch: MakeBatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(tmp_path / "base", tiny("qwen3"), ModelFormat(), tokenizer_folder)
    said = {}
    for gain in ("ones", "none"):
        settings = SublnSettings.model_validate({"gain": gain, "calibration_rows": 1})
        insert_subln_stage(settings, tmp_path / "base", [batch()], [batch()], tmp_path / gain)
        said[gain] = "".join(capsys.readouterr())
    assert "subln: llama.cpp will not run this model" in said["ones"]
    assert "norms of queries and keys" in " ".join(said["ones"].split())
    assert "norms of queries and keys" not in " ".join(said["none"].split())
    for changes, reason in (
        ({"gain": "ones"}, "norms of queries and keys"),
        ({"gain": "none", "quantizer": {"granularity": "row"}}, "scales per row"),
    ):
        settings = SublnSettings.model_validate({**changes, "calibration_rows": 1})
        with pytest.raises(UserError, match=f"export asks for F32 in GGUF, and .*{reason}"):
            insert_subln_stage(
                settings,
                tmp_path / "base",
                [batch()],
                [batch()],
                tmp_path / "refused",
                export={"gguf": ["F32"]},
            )


def test_a_model_that_is_not_dense_is_refused(base: Path, tmp_path: Path, batch: MakeBatch) -> None:
    settings = SublnSettings(gain="ones", calibration_rows=1)
    insert_subln_stage(settings, base, [batch()], [batch()], tmp_path / "subln")
    with pytest.raises(UserError, match="expected a dense model"):
        insert_subln_stage(settings, tmp_path / "subln", [batch()], [batch()], tmp_path / "again")


@pytest.mark.parametrize("kind", ["training", "held_out"])
def test_rows_of_a_larger_vocabulary_are_refused(
    base: Path, tmp_path: Path, batch: MakeBatch, kind: str
) -> None:
    settings = SublnSettings(gain="ones", calibration_rows=1)
    rows = {"training": [batch()], "held_out": [batch()]}
    rows[kind][0].tokens_BT[1, 3] = 97
    with pytest.raises(UserError, match="ids up to 97, but the model's embedding ends at 96"):
        insert_subln_stage(settings, base, rows["training"], rows["held_out"], tmp_path / "subln")


def test_rows_longer_than_the_positions_of_the_model_are_refused(
    base: Path, tmp_path: Path, batch: MakeBatch
) -> None:
    settings = SublnSettings(gain="ones", calibration_rows=1)
    with pytest.raises(UserError, match="rows have 129 tokens, but the model's max_position_emb"):
        long = [batch(length=129)]
        insert_subln_stage(settings, base, long, long, tmp_path / "subln")


def test_a_base_whose_loss_is_not_finite_is_refused(
    tiny: Tiny, tokenizer_folder: Path, tmp_path: Path, batch: MakeBatch
) -> None:
    model = tiny(tie_word_embeddings=False)
    torch.nn.init.constant_(model.get_output_embeddings().weight, 3e38)
    save_model(tmp_path / "base", model, ModelFormat(), tokenizer_folder)
    settings = SublnSettings(gain="ones", calibration_rows=1)
    with pytest.raises(UserError, match=r"base: its held-out loss is (nan|inf)"):
        insert_subln_stage(settings, tmp_path / "base", [batch()], [batch()], tmp_path / "subln")


def test_damage_is_that_of_the_chosen_quantizer_and_the_model_keeps_it(
    base: Path, tmp_path: Path, batch: MakeBatch
) -> None:
    rows, facts = batch(rows=6), {}
    for scale, granularity in (("absmean", "tensor"), ("least_squares", "row"), ("learned", "row")):
        quantizer = QuantizerSettings.model_validate({"scale": scale, "granularity": granularity})
        settings = SublnSettings(gain="ones", calibration_rows=6, quantizer=quantizer)
        found = insert_subln_stage(settings, base, [rows], [rows], tmp_path / scale)
        model, model_format = load_model(tmp_path / scale)
        assert model_format == ternary(quantizer)
        assert found["loss_after_lambda1"] == mean_next_token_loss(model, [rows], 1.0)
        facts[scale] = found
    dense, naive, zero, one = (
        {scale: found[name] for scale, found in facts.items()}
        for name in (
            "loss_before",
            "loss_ternary_without_subln",
            "loss_after_lambda0",
            "loss_after_lambda1",
        )
    )
    assert len(set(dense.values())) == len(set(zero.values())) == 1
    for losses in (naive, one):
        assert losses["absmean"] != losses["least_squares"]
        assert losses["learned"] == pytest.approx(losses["least_squares"], abs=1e-3)


def test_groups_that_do_not_fit_the_base_are_refused_before_any_work(
    base: Path, tmp_path: Path, batch: MakeBatch
) -> None:
    quantizer = QuantizerSettings(granularity="group", group_size=256)
    settings = SublnSettings(calibration_rows=1, quantizer=quantizer)
    with pytest.raises(UserError, match="64 inputs are no multiple of quantizer.group_size 256"):
        insert_subln_stage(settings, base, [batch()], [batch()], tmp_path / "subln")
