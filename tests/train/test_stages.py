"""What every training stage asks of the models that it is given."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.mask_token import MASK_TOKEN
from wrinklefree.models.transforms import DiffuseBlocks, ModelFormat, ternary
from wrinklefree.tokens.tokenizer import read_tokenizer
from wrinklefree.tracking.stage import Stage
from wrinklefree.train import distill, dlm, teacher
from wrinklefree.train.distill import distill_student
from wrinklefree.train.dlm import convert_to_diffusion
from wrinklefree.train.history import read_history
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.stage2 import continue_pretraining

FORMATS = {
    "dense": ModelFormat(),
    "ternary": ternary(),
    "diffusion": ternary().then(DiffuseBlocks(block_size=4, token_shift="none", mask_token_id=2)),
}
DISTILLATION: dict[str, Any] = {
    "weights": {"cross_entropy": 1.0, "logits": 1.0, "relations": 0.0},
    "temperature": 2.0,
    "temperature_squared": False,
    "relations": {"layer_fractions": [0.5], "heads": 2, "temperature": 1.0, "causal": True},
}
DIFFUSION: dict[str, Any] = {
    "block_size": 4,
    "mask_init": "mean",
    "token_shift": "none",
    "loss_weighting": "unit",
    "complementary_masks": False,
}


@pytest.fixture(scope="module")
def models(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind by its name, and a ternary one whose ``broken`` weights hold NaN."""
    root = tmp_path_factory.mktemp("models")
    for kind, model_format in {**FORMATS, "broken": FORMATS["ternary"]}.items():
        config = LlamaConfig(
            vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
        model_format.apply(model)
        if kind == "broken":
            torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
        save_model(root / kind, model, model_format, mixture.parent / "tokenizer")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def start(
    models: dict[str, Path],
    mixture: Path,
    make_stage: Callable[..., Stage],
    make_settings: Callable[..., Any],
) -> Callable[..., Stage]:
    """Runs a stage."""

    def start(
        name: str, changes: dict[str, Any] | None = None, *, seed: int = 1, **kinds: str
    ) -> Stage:
        training = {**make_settings().model_dump(exclude_none=True), **(changes or {})}
        functions = {"stage2": continue_pretraining, "dlm": convert_to_diffusion}
        settings: dict[str, Any] = {"stage2": training, "dlm": {**training, "diffusion": DIFFUSION}}
        instance = name.removeprefix("distill.") if name.startswith("distill.") else None
        settings["distill"] = {instance: {**training, **DISTILLATION}}
        inputs = {key: models[kind] for key, kind in kinds.items()}
        stage = replace(
            make_stage(f"{changes} {seed}", seed=seed, **settings),
            instance=instance,
            inputs={"mixture": mixture, **inputs},
        )
        functions.get(name, distill_student)(stage)
        return stage

    return start


@pytest.fixture
def run(start: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    """Runs a stage up to its training."""
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("trained"))
    return start


@pytest.mark.parametrize(
    ("stage", "given", "expected"),
    [
        ("stage2", "dense", "autoregressive"),
        ("stage2", "diffusion", "autoregressive"),
        ("dlm", "dense", "autoregressive"),
        ("dlm", "diffusion", "autoregressive"),
        ("distill.ar", "dense", "autoregressive"),
        ("distill.ar", "diffusion", "autoregressive"),
        ("distill.dlm", "ternary", "block-diffusion"),
        ("distill.dlm", "dense", "block-diffusion"),
    ],
)
def test_a_model_of_another_kind_is_not_trained(
    run: Callable[..., Any], stage: str, given: str, expected: str
) -> None:
    message = rf"models\d+/{given}: by its .* \(made by stages? .*; expected an? {expected} model"
    with pytest.raises(UserError, match=message):
        run(stage, model=given, teacher="dense")


@pytest.mark.parametrize("given", ["ternary", "diffusion"])
def test_only_a_dense_model_teaches(run: Callable[..., Any], given: str) -> None:
    with pytest.raises(UserError, match=rf"/{given}: .*; expected a dense model"):
        run("distill.ar", model="ternary", teacher=given)


def test_stage_2_has_a_teacher_when_it_is_asked_for(start: Callable[..., Stage]) -> None:
    kinds = {"model": "ternary", "teacher": "dense"}
    text = read_history(start("stage2", **kinds).folder)
    taught = read_history(start("stage2", {"teacher": "base"}, **kinds).folder)
    assert text[0]["train/objective"] == pytest.approx(text[0]["train/loss"])
    assert taught[0]["train/objective"] == pytest.approx(taught[0]["distill/logits"])
    assert taught[0]["train/loss"] == text[0]["train/loss"]  # the same rows, still measured
    assert taught[-1]["train/loss"] != text[-1]["train/loss"]
    with pytest.raises(UserError, match=r"/ternary: .*; expected a dense model"):
        start("stage2", {"teacher": "base"}, model="ternary", teacher="ternary")


@pytest.mark.parametrize("cached_logits", [0, 300])
def test_another_teacher_teaches_beside_the_base_and_in_its_place(
    start: Callable[..., Stage],
    models: dict[str, Path],
    mixture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cached_logits: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    larger = LlamaConfig(
        vocab_size=400, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(9)
    tokenizer = mixture.parent / "tokenizer"
    save_model(tmp_path / "all" / "large", LlamaForCausalLM(larger), ModelFormat(), tokenizer)
    monkeypatch.setitem(models, "all", tmp_path / "all")
    kinds = {"model": "ternary", "teacher": "dense", "teachers": "all"}

    def divergence(**teachers: float) -> float:
        taught = {"teachers": teachers, "cached_logits": cached_logits}
        stage = start("stage2", {"teacher": "base", "distillation": taught}, **kinds)
        return read_history(stage.folder)[0]["distill/logits"]

    base, large = divergence(base=1.0), divergence(large=1.0)
    assert base != large
    assert divergence(base=0.5, large=2.0) == pytest.approx(0.5 * base + 2.0 * large)
    with pytest.raises(UserError, match="has no missing: write it to section teachers"):
        divergence(missing=1.0)


@pytest.mark.parametrize("taught", [{}, {"cached_logits": 8}, {"universal": True}], ids=str)
def test_a_teacher_that_is_made_for_shorter_rows_does_not_teach(
    start: Callable[..., Stage],
    models: dict[str, Path],
    mixture: Path,
    save_tokenizer: Callable[[Path, list[str]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    taught: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    tokenizer = mixture.parent / "tokenizer"
    if "universal" in taught:
        (tokenizer := tmp_path / "words").mkdir()
        save_tokenizer(tokenizer, ["<|endoftext|>"])
    save_model(tmp_path / "all" / "short", LlamaForCausalLM(config), ModelFormat(), tokenizer)
    monkeypatch.setitem(models, "all", tmp_path / "all")
    settings = {"teacher": "base", "distillation": {"teachers": {"short": 1.0}, **taught}}
    kinds = {"model": "ternary", "teacher": "dense", "teachers": "all"}
    with pytest.raises(UserError, match=r"tokens, but the teacher's max_position_embeddings is 8"):
        start("stage2", settings, **kinds)


def test_a_teacher_with_another_tokenizer_teaches_where_that_is_allowed(
    start: Callable[..., Stage],
    models: dict[str, Path],
    save_tokenizer: Callable[[Path, list[str]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    (tmp_path / "words").mkdir()
    save_tokenizer(tmp_path / "words", ["<|endoftext|>"])
    model = LlamaForCausalLM(config)
    save_model(tmp_path / "all" / "other", model, ModelFormat(), tmp_path / "words")
    monkeypatch.setitem(models, "all", tmp_path / "all")
    kinds = {"model": "ternary", "teacher": "dense", "teachers": "all"}

    def taught(**changes: Any) -> list[dict[str, float]]:
        given = {"teachers": {"other": 1.0}, **changes}
        return read_history(
            start("stage2", {"teacher": "base", "distillation": given}, **kinds).folder
        )

    with pytest.raises(UserError, match="use a teacher with the student's tokenizer"):
        taught()
    with pytest.raises(UserError, match="cached_logits is 8, and teacher other has another"):
        taught(universal=True, cached_logits=8)
    history = taught(universal=True)
    assert 0 < history[0]["distill/logits"] < 2
    assert history[0]["train/objective"] == pytest.approx(history[0]["distill/logits"])
    # A teacher with the student's own tokenizer goes on teaching token by token.
    alike = {"teachers": {"base": 1.0}}
    assert taught(universal=True, **alike)[0] == taught(**alike)[0]


def test_the_teacher_may_write_its_logits_and_leave(
    start: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kinds = {"model": "ternary", "teacher": "dense"}
    teacher = {"teacher": "base", "evaluate_interval": 2}  # held-out rows have no logits
    live = read_history(start("stage2", teacher, **kinds).folder)
    cached = teacher | {"distillation": {"cached_logits": 399}}
    written = read_history(start("stage2", cached, **kinds).folder)
    assert list(Path("work/teacher_logits").glob("*/*.safetensors"))
    for one, other in zip(live, written, strict=True):
        assert one["distill/logits"] == pytest.approx(other["distill/logits"], rel=0.05, abs=1e-4)
    assert live[-1]["train/objective"] != written[-1]["train/objective"]
    with pytest.raises(UserError, match=r"cached_logits is 400, and the teacher has 400 tokens"):
        start("stage2", teacher | {"distillation": {"cached_logits": 400}}, **kinds)
    influence = {"data": {"influence": {"enabled": True}}}
    with pytest.raises(UserError, match=r"cached_logits needs to know the rows of the run"):
        start("stage2", cached | influence, **kinds)


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> DiffusionSettings:
    """What the diffusion student of ``distill.dlm`` was converted with, in none of its defaults."""
    settings = {**DIFFUSION, "loss_weighting": "elbo", "complementary_masks": True}
    manifest = SimpleNamespace(settings={"dlm": {"diffusion": settings}})
    monkeypatch.setattr(distill, "read_manifest", lambda folder: manifest)
    return DiffusionSettings.model_validate(settings)


@pytest.mark.parametrize(
    ("name", "model"), [("distill.ar", "ternary"), ("distill.dlm", "diffusion")]
)
def test_what_a_teacher_writes_is_of_its_distillation(
    start: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    noise: DiffusionSettings, name: str, model: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    kinds = {"model": model, "teacher": "dense"}
    live, written = (
        read_history(start(name, {"cached_logits": kept}, **kinds).folder)[0]["distill/logits"]
        for kept in (0, 399)
    )
    assert written == pytest.approx(live, rel=0.05)


def test_written_logits_are_read_again_by_their_like_alone(
    start: Callable[..., Stage], models: dict[str, Path], mixture: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    of_other_config = load_model(models["dense"])[0]
    of_other_config.config.rms_norm_eps = 0.5
    save_model(tmp_path / "eps", of_other_config, ModelFormat(), mixture.parent / "tokenizer")
    monkeypatch.setitem(models, "eps", tmp_path / "eps")

    def folders(teacher: str = "dense", **changes: Any) -> int:
        taught = {"cached_logits": 7, "temperature": 1.0, **changes.pop("distillation", {})}
        changes |= {"teacher": "base", "evaluate_interval": 2, "distillation": taught}
        start("stage2", changes, model="ternary", teacher=teacher)
        return len(list(Path("work/teacher_logits").iterdir()))

    assert folders() == folders(log_interval=1) == 1
    assert folders(distillation={"cached_logits": 8}) == 2
    assert folders(distillation={"temperature": 2.0}) == 3
    assert folders(precision="bfloat16") == 4
    assert folders("eps") == 5


@pytest.fixture
def objectives(monkeypatch: pytest.MonkeyPatch) -> list[Objective]:
    """Of the trainings of diffusion students, which are not trained."""
    found: list[Objective] = []

    def trainer(stage: Stage, model: Any, data: Any, settings: Any, objective: Objective) -> Any:
        found.append(objective)
        return SimpleNamespace(run=dict)

    for module in (dlm, distill):
        monkeypatch.setattr(module, "stage_trainer", trainer)
    return found


def test_a_diffusion_student_goes_on_with_the_noise_that_it_was_converted_with(
    start: Callable[..., Stage], noise: DiffusionSettings, objectives: list[Objective]
) -> None:
    start("distill.dlm", model="diffusion", teacher="dense")
    (objective,) = objectives
    assert isinstance(objective.corruption, BlockDiffusion)
    assert objective.corruption.settings == noise


@pytest.mark.parametrize(("name", "model"), [("dlm", "ternary"), ("distill.dlm", "diffusion")])
def test_masks_follow_the_seed(
    start: Callable[..., Stage], mixture: Path, noise: DiffusionSettings,
    objectives: list[Objective], name: str, model: str,
) -> None:  # fmt: skip
    teacher = {"teacher": "dense"} if name == "distill.dlm" else {}
    for seed in (1, 1, 2):
        start(name, {"log_interval": len(objectives) + 1}, seed=seed, model=model, **teacher)
    batch = TrainingData(mixture, seed=7).batch(0, 0, batch_size=4, micro_batches=1)
    masks = [each.corruption.prepare(batch, 0).views[0].masked_BT for each in objectives]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


def test_a_converted_model_has_a_mask_token_by_the_settings_and_the_seed(
    start: Callable[..., Stage], objectives: list[Objective], models: dict[str, Path],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    shutil.copytree(models["ternary"], tmp_path / "ternary")
    file = tmp_path / "ternary" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != MASK_TOKEN]
    del content["model"]["vocab"][MASK_TOKEN]
    file.write_text(json.dumps(content))
    monkeypatch.setitem(models, "ternary", tmp_path / "ternary")
    rows: list[torch.Tensor] = []
    for seed, init in ((1, "random"), (2, "random"), (1, "mean")):
        monkeypatch.setitem(DIFFUSION, "mask_init", init)
        folder = start("dlm", {"log_interval": len(rows) + 1}, seed=seed, model="ternary").folder
        number = load_model(folder)[1].find(DiffuseBlocks).mask_token_id
        rows.append(load_model(folder)[0].get_input_embeddings().weight[number])
        assert read_tokenizer(folder).id_to_token(number) == MASK_TOKEN
    assert len({tuple(row.tolist()) for row in rows}) == 3


def test_a_teacher_that_wrote_its_logits_is_in_no_memory(
    start: Callable[..., Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded: list[weakref.ref[Any]] = []

    def loads(*arguments: Any) -> Any:
        found = load_model(*arguments)
        loaded.append(weakref.ref(found[0]))
        return found

    def train(trainer: Trainer) -> dict[str, Any]:
        gc.collect()
        assert [teacher() for teacher in loaded] == [None]
        return {}

    monkeypatch.setattr(teacher, "load_model", loads)
    # As on a machine with a GPU, to which the teacher is moved.
    cuda = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setattr(distill, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(distill, "nn", SimpleNamespace(Module=SimpleNamespace(to=lambda *_: None)))
    monkeypatch.setattr(Trainer, "run", train)
    start("distill.ar", {"cached_logits": 8}, model="ternary", teacher="dense")


@pytest.mark.parametrize("stage", ["stage2", "dlm", "distill.ar"])
def test_weights_that_are_not_finite_are_not_trained(run: Callable[..., Any], stage: str) -> None:
    with pytest.raises(UserError, match=r"/broken: 12800 of 12800 values of .*embed_tokens"):
        run(stage, model="broken", teacher="dense")
