from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wrinklefree.errors import UserError
from wrinklefree.evaluate import stage as evaluating
from wrinklefree.evaluate.generate import Sample
from wrinklefree.evaluate.likelihood import score_model
from wrinklefree.evaluate.settings import EvaluateSettings
from wrinklefree.evaluate.stage import evaluate_models
from wrinklefree.mixture.loader import HeldOutData
from wrinklefree.models.folder import load_model, save_model, write_json
from wrinklefree.models.prune import prune_features, prune_layers
from wrinklefree.models.surgery import insert_bitlinear
from wrinklefree.models.transforms import InsertBitlinear, ModelFormat, ternary
from wrinklefree.quant.settings import QuantizerSettings
from wrinklefree.tokens.tokenizer import load_tokenizer

SETTINGS = EvaluateSettings(
    rows_per_domain=4,
    batch_size=2,
    likelihood_draws=2,
    prompts=["the city", "a function"],
    new_tokens=5,
)
WEIGHTS = {"code": 0.25, "prose": 0.75, "spare": 0.0}
FILES = {
    "evaluation.json",
    "metrics.json",
    "table.md",
    "table.txt",
    "table.html",
    "samples.md",
    "samples.html",
    "ternary.csv",
    "curves/base.csv",
    "curves/stage2.csv",
    "curves/distill_ar.csv",
    "curves/dlm.csv",
    "plots/held_out_loss.svg",
    "plots/training_loss.svg",
    "plots/gradient_norms.svg",
    "plots/domain_loss.svg",
    "plots/loss_variance.svg",
    "plots/ternary_shares.svg",
    "plots/latent_weights.svg",
    "plots/ternary_scales.svg",
    "plots/code_changes.svg",
    "plots/loss_terms.svg",
}


@pytest.fixture(scope="module")
def models(run_models: Callable[[], dict[str, Path]]) -> dict[str, Path]:
    return run_models()


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def results(
    models: dict[str, Path], mixture: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("results")
    return folder, evaluate_models(SETTINGS, models, mixture, folder, seed=3)


@pytest.fixture(scope="module")
def evaluation(results: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return json.loads((results[0] / "evaluation.json").read_text(encoding="utf-8"))


def test_the_same_seed_gives_the_same_files(
    results: tuple[Path, dict[str, Any]],
    models: dict[str, Path],
    mixture: Path,
    tmp_path: Path,
):
    facts = evaluate_models(SETTINGS, models, mixture, tmp_path, seed=3)
    assert _contents(tmp_path) == _contents(results[0])
    assert set(_contents(tmp_path)) == FILES
    assert facts == results[1]


def test_naive_ternary_is_the_base_with_its_linears_replaced_and_nothing_else(
    models: dict[str, Path], mixture: Path, evaluation: dict[str, Any]
):
    model, _ = load_model(models["base"])
    held_out = HeldOutData(mixture)

    def loss(model_format: ModelFormat) -> float:
        scored = score_model("m", model, model_format, held_out, WEIGHTS, SETTINGS, seed=0)
        return scored.overall.loss

    assert evaluation["models"]["base"]["loss"] == loss(ModelFormat())
    insert_bitlinear(model)
    assert evaluation["models"]["naive"]["loss"] == loss(ModelFormat().then(InsertBitlinear()))
    assert evaluation["models"]["naive"]["loss"] != evaluation["models"]["base"]["loss"]


def test_naive_ternary_has_the_quantizer_of_the_run(
    models: dict[str, Path], mixture: Path, tokenizer_folder: Path, tmp_path: Path
):
    quantizer = QuantizerSettings(scale="least_squares", granularity="row")
    model, _ = load_model(models["base"])
    subln = ternary(quantizer)
    subln.apply(model)
    save_model(tmp_path / "subln", model, subln, tokenizer_folder)
    run = {"base": models["base"], "subln": tmp_path / "subln"}
    (tmp_path / "results").mkdir()
    facts = evaluate_models(SETTINGS, run, mixture, tmp_path / "results", seed=3)

    model, _ = load_model(models["base"])
    insert_bitlinear(model, quantizer)
    naive = ModelFormat().then(InsertBitlinear(quantizer=quantizer))
    scored = score_model("m", model, naive, HeldOutData(mixture), WEIGHTS, SETTINGS, seed=0)
    assert facts["loss"]["naive"] == scored.overall.loss


def test_what_pruning_left_is_shown_before_it_is_made_ternary(
    models: dict[str, Path], mixture: Path, tokenizer_folder: Path, tmp_path: Path
):
    importances = {"layers": [0.2, 0.7], "intermediate_size": [[*map(float, range(48))]]}
    model = prune_layers(load_model(models["base"])[0], importances["layers"], 1)
    model = prune_features(model, importances["intermediate_size"], 20)
    for name, made in (("pruned", ModelFormat()), ("subln", ternary())):
        made.apply(model)
        save_model(tmp_path / name, model, made, tokenizer_folder)
    write_json(tmp_path / "subln" / "importances.json", importances)

    def results(base: Path, *others: str) -> dict[str, Any]:
        (folder := tmp_path / f"of_{base.name}").mkdir()
        run = {"base": base} | {name: tmp_path / name for name in others}
        evaluate_models(SETTINGS, run, mixture, folder, seed=3)
        return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))

    found, alone = results(models["base"], "subln"), results(tmp_path / "pruned")
    assert list(found["models"]) == ["base", "pruned", "naive", "subln"]
    for part in ("models", "cost"):
        assert found[part]["pruned"] == alone[part]["base"]
    table = (tmp_path / "of_base" / "table.txt").read_text(encoding="utf-8")
    (row,) = [line for line in table.splitlines() if line.startswith("bytes, with floats of 32")]
    sizes = [f"{found['cost'][name]['bytes_float32']:,}" for name in ("base", "pruned", "naive")]
    assert row.split()[-3:] == sizes


def test_models_are_in_order_and_each_says_what_it_is(evaluation: dict[str, Any]):
    assert list(evaluation["models"]) == ["base", "naive", "subln", "stage2", "distill_ar", "dlm"]
    kinds = {name: model["kind"] for name, model in evaluation["models"].items()}
    assert kinds.pop("dlm") == "block_diffusion"
    assert set(kinds.values()) == {"autoregressive"}
    dense = [name for name, model in evaluation["models"].items() if not model["quantized"]]
    assert dense == ["base"]
    assert list(evaluation["ternary"]) == ["naive", "subln", "stage2", "distill_ar", "dlm"]


def test_the_metrics_are_the_few_numbers_that_runs_are_compared_by(
    results: tuple[Path, dict[str, Any]], evaluation: dict[str, Any]
):
    metrics = json.loads((results[0] / "metrics.json").read_text(encoding="utf-8"))
    models = evaluation["models"]
    assert metrics["loss"] == {name: model["loss"] for name, model in models.items()}
    recovered = {name: evaluation["recovered"][name] for name in ("subln", "stage2", "distill_ar")}
    assert metrics["recovered"] == recovered and len(set(recovered.values())) == 3
    assert metrics["bits_per_byte"] == {
        name: models[name]["bits_per_byte"] for name in ("base", "distill_ar")
    }


def test_the_cost_of_every_model_is_told_and_that_of_base_and_student_is_in_the_table(
    results: tuple[Path, dict[str, Any]], evaluation: dict[str, Any]
):
    costs = evaluation["cost"]
    assert list(costs) == list(evaluation["models"])
    for name, pooled in evaluation["ternary"].items():
        dense = costs["base"]["matrices"] - costs[name]["matrices"]  # both have a head
        assert costs[name]["ternary"] == dense == pooled["weights"]
    text = (results[0] / "table.txt").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("energy estimate, nJ")]
    shown = [f"{costs[name]['picojoules'] / 1e3:,.1f}" for name in ("base", "distill_ar")]
    assert row.split()[-2:] == shown


def test_the_headline_is_weighted_as_the_mixture(evaluation: dict[str, Any]):
    assert evaluation["weights"] == WEIGHTS
    for model in evaluation["models"].values():
        domains = model["domains"]
        expected = 0.25 * domains["code"]["loss"] + 0.75 * domains["prose"]["loss"]
        assert model["loss"] == pytest.approx(expected, rel=1e-12)
        assert domains["spare"]["rows"] == 3


def test_the_variance_of_every_model_is_split_as_the_mixture_weighs_domains(
    evaluation: dict[str, Any],
):
    for model in evaluation["models"].values():
        domains, split = model["domains"], model["loss_variance"]
        within = sum(WEIGHTS[name] * domains[name]["loss_variance"] for name in WEIGHTS)
        squares = (WEIGHTS[n] * (domains[n]["loss"] - model["loss"]) ** 2 for n in WEIGHTS)
        assert split["within"] == pytest.approx(within)
        assert split["between"] == pytest.approx(sum(squares))
        assert split["total"] == split["within"] + split["between"] > 0
        assert split["between_share"] == pytest.approx(split["between"] / split["total"])


def test_the_noise_of_every_training_is_told(evaluation: dict[str, Any]):
    noise = evaluation["training_noise"]
    assert list(noise) == ["base", "stage2", "distill_ar", "dlm"]
    assert noise["stage2"]["steps"]["total"] > 0
    assert noise["stage2"]["rows"]["between"] > 0


def test_only_ternary_autoregressive_models_recover_a_share(
    results: tuple[Path, dict[str, Any]], evaluation: dict[str, Any]
):
    recovered = evaluation["recovered"]
    assert list(recovered) == ["naive", "subln", "stage2", "distill_ar"]
    losses = {name: model["loss"] for name, model in evaluation["models"].items()}
    naive, base = losses["naive"], losses["base"]
    assert naive > base, "else there is nothing to recover"
    for name, share in recovered.items():
        assert share == pytest.approx((naive - losses[name]) / (naive - base))
    assert results[1]["loss"] == losses
    assert results[1]["recovered"] == recovered


def test_accepted_guesses_are_a_share_of_the_guessed():
    samples = [Sample("a", "b", 9, 5, False, 4, 3), Sample("a", "b", 7, 6, False, 2, 0)]
    found: Any = SimpleNamespace(
        samples={"base": [Sample("a", "b", 9, 9, False)], "student": samples},
        scores={}, ternary={}, recovered=dict,
    )  # fmt: skip
    assert evaluating._facts(found)["accepted"] == {"student": 0.5}


def test_each_setting_reaches_what_it_is_for(
    models: dict[str, Path], mixture: Path, evaluation: dict[str, Any], tmp_path: Path
):
    few = {name: models[name] for name in ("base", "dlm")}

    def evaluated(seed: int = 3, **update: Any) -> dict[str, Any]:
        settings = SETTINGS.model_copy(update=update)
        evaluate_models(settings, few, mixture, tmp_path, seed=seed)
        return json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))

    fewer = evaluated(rows_per_domain=2, prompts=["the"], new_tokens=2)
    assert fewer["models"]["base"]["domains"]["prose"]["rows"] == 2
    assert [sample["prompt"] for sample in fewer["samples"]["base"]] == ["the"]
    assert {sample["tokens"] for sample in fewer["samples"]["dlm"]} == {2}
    redrawn = evaluated(likelihood_draws=3, batch_size=4)
    assert redrawn["models"]["dlm"]["loss"] != evaluation["models"]["dlm"]["loss"]
    base = evaluation["models"]["base"]["loss"]
    assert redrawn["models"]["base"]["loss"] == pytest.approx(base, rel=1e-6)
    reseeded = evaluated(seed=4)
    assert reseeded["models"]["dlm"]["loss"] != evaluation["models"]["dlm"]["loss"]
    assert reseeded["models"]["base"] == evaluation["models"]["base"]


def test_samples_are_continuations_by_the_model_they_stand_under(
    results: tuple[Path, dict[str, Any]], evaluation: dict[str, Any]
):
    texts = {
        name: tuple(sample["text"] for sample in samples)
        for name, samples in evaluation["samples"].items()
    }
    assert len(set(texts.values())) == len(texts)
    markdown = (results[0] / "samples.md").read_text(encoding="utf-8")
    assert markdown.count("forward passes") == 2 * len(texts)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("base", "stage2", "stage2: by its .* ternary layers .*; expected a dense model"),
        ("stage2", "base", "base: by its .* a dense model .*; expected an autoregressive model"),
        ("distill_ar", "dlm", "dlm: by its .* a block-diffusion .*; expected an autoregressive"),
        ("dlm", "stage2", "stage2: by its .*; expected a block-diffusion model"),
    ],
)
def test_a_model_under_the_name_of_another_is_refused_before_anything_is_scored(
    models: dict[str, Path], mixture: Path, tmp_path: Path, name: str, given: str, message: str
):
    swapped = {**models, name: models[given]}
    with pytest.raises(UserError, match=message):
        evaluate_models(SETTINGS, swapped, mixture, tmp_path, seed=3, say=pytest.fail)


def test_a_pretrained_base_has_no_curve(
    run_models: Callable[[], dict[str, Path]], mixture: Path, tmp_path: Path
):
    folders = {name: path for name, path in run_models().items() if name in ("base", "subln")}
    (folders["base"] / "history.jsonl").write_text("")
    evaluate_models(SETTINGS, folders, mixture, tmp_path, seed=3)
    assert not (tmp_path / "plots/training_loss.svg").exists()
    assert (tmp_path / "plots/held_out_loss.svg").exists()


def test_a_tokenizer_that_is_missing_is_named(
    run_models: Callable[[], dict[str, Path]], mixture: Path, tmp_path: Path
):
    folders = run_models()
    load_tokenizer(folders["base"])
    (folders["base"] / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        evaluate_models(SETTINGS, folders, mixture, tmp_path, seed=3)
