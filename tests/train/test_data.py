from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.losses import mean_next_token_loss
from wrinklefree.models.surgery import insert_bitlinear, insert_subln
from wrinklefree.models.transforms import ModelFormat, ternary
from wrinklefree.quant.bitlinear import set_quantization_lambda
from wrinklefree.tracking.stage import Stage
from wrinklefree.tracking.terminal import Terminal
from wrinklefree.train import base
from wrinklefree.train.base import make_base
from wrinklefree.train.data import SCORES, arrange, open_data
from wrinklefree.train.distill import distill_student
from wrinklefree.train.dlm import convert_to_diffusion
from wrinklefree.train.history import read_history
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.settings import CurriculumDecayWarning, QuantizedTrainingSettings
from wrinklefree.train.stage2 import continue_pretraining

MakeSettings = Callable[..., QuantizedTrainingSettings]
WEIGHTS = {"first": 0.25, "second": 0.75}
LATER = {"first": 1.0, "second": 0.0}


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def stage(make_stage: Callable[..., Stage], mixture: Path, output: io.StringIO) -> Stage:
    terminal = Terminal("stage2", stream=output)
    return replace(make_stage(), inputs={"mixture": mixture}, terminal=terminal)


def small_model(vocabulary: int = 400, *, quantized: bool = True) -> PreTrainedModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if quantized:
        insert_subln(model)
        insert_bitlinear(model)
        set_quantization_lambda(model, 1.0)
    return model.eval()


def rows_read(data: TrainingData, settings: QuantizedTrainingSettings) -> list[tuple[int, int]]:
    """(domain, digest of the tokens) of every sample of the run."""
    size = settings.batch_size * settings.gradient_accumulation_steps
    batch = data.batch(0, 0, batch_size=settings.steps * size, micro_batches=1)
    return [
        (d, hash(tuple(row)))
        for d, row in zip(batch.domain_B.tolist(), batch.tokens_BT.tolist(), strict=True)
    ]


def test_phases_change_the_weights_at_their_step_and_are_recorded(
    stage: Stage, make_settings: MakeSettings
) -> None:
    phases = [{"from_step": 3, "weights": LATER}]
    settings = make_settings({"steps": 10, "data": {"phases": phases}})
    data, facts = arrange(stage, settings, open_data(stage, settings), None)
    plain = make_settings({"steps": 10})
    shuffled, _ = arrange(stage, plain, open_data(stage, plain), None)
    rows, before = rows_read(data, settings), rows_read(shuffled, plain)
    assert rows[:12] == before[:12]
    assert [domain for domain, _ in rows[12:]] == [0] * 28
    assert {domain for domain, _ in before[12:]} == {0, 1}
    assert facts["weight_changes"] == [
        {"first_sample": 0, "first_step": 0, "weights": WEIGHTS},
        {"first_sample": 12, "first_step": 3, "weights": LATER},
    ]
    assert facts["epochs"] == data.epochs(40)


def test_weights_of_every_step_are_in_the_history(
    stage: Stage, make_settings: MakeSettings
) -> None:
    settings = make_settings({"data": {"phases": [{"from_step": 3, "weights": LATER}]}})
    trainer = stage_trainer(stage, small_model(), open_data(stage, settings), settings)
    trainer.run()
    for name, values in (("first", [0.25] * 3 + [1.0] * 2), ("second", [0.75] * 3 + [0.0] * 2)):
        assert [entry[f"train/weight/{name}"] for entry in trainer.state.history] == values


def test_reading_a_domain_again_is_said_and_too_often_is_refused(
    stage: Stage, make_settings: MakeSettings, output: io.StringIO
) -> None:
    once = make_settings()
    data = open_data(stage, once)
    assert output.getvalue() == ""

    def steps_for(epochs: float) -> int:
        return next(n for n in range(10**6) if max(data.epochs(4 * n).values()) > epochs)

    open_data(stage, make_settings({"steps": steps_for(1.5)}))
    (line,) = output.getvalue().splitlines()
    tokens = f"{data.train_tokens('second'):,} training tokens"
    assert f"domain second has {tokens}, read 1.5" in line
    limit = steps_for(4.0)
    open_data(stage, make_settings({"steps": limit - 1}))
    with pytest.raises(UserError, match=f"domain second has {tokens}.* 4.0.*give it more text"):
        open_data(stage, make_settings({"steps": limit}))


def test_max_repetition_is_the_mixtures(stage: Stage, make_settings: MakeSettings) -> None:
    settings = make_settings({"steps": 40})
    epochs = max(open_data(stage, settings).epochs(160).values())
    folder = stage.inputs["mixture"]
    path = stage.folder / "mixture"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    index = path / "mixture.json"
    lower = f'"max_repetition": {epochs - 0.0001}'
    index.write_text(index.read_text().replace('"max_repetition": 4.0', lower))
    with pytest.raises(UserError, match=f"read {epochs:.4f}.* times, more than mixture.max_rep"):
        open_data(replace(stage, inputs={"mixture": path}), settings)


@pytest.mark.filterwarnings("ignore::wrinklefree.train.settings.CurriculumDecayWarning")
def test_short_documents_first_reads_the_rows_of_the_shuffled_run(
    stage: Stage, make_settings: MakeSettings
) -> None:
    settings = make_settings({"steps": 12, "data": {"order": "length"}})
    shuffled = open_data(stage, settings)
    data, facts = arrange(stage, settings, shuffled, None)
    rows, before = rows_read(data, settings), rows_read(shuffled, settings)
    assert rows != before and sorted(rows) == sorted(before)
    assert [domain for domain, _ in rows] == [domain for domain, _ in before]
    assert facts["order"] == "length" and len(facts["scores"]) == 64
    assert "scores" not in arrange(stage, make_settings(), shuffled, None)[1]
    assert not stage.work.exists()


@pytest.mark.filterwarnings("ignore::wrinklefree.train.settings.CurriculumDecayWarning")
def test_rows_of_low_loss_first_by_the_model_not_quantized(
    stage: Stage, make_settings: MakeSettings, output: io.StringIO
) -> None:
    settings = make_settings({"steps": 4, "data": {"order": "loss"}})
    model = small_model()
    shuffled = open_data(stage, settings)
    data, facts = arrange(stage, settings, shuffled, model)
    assert "rows are scored by their loss" in output.getvalue()
    rows = rows_read(data, settings)
    before = rows_read(shuffled, settings)
    assert rows != before and sorted(rows) == sorted(before)
    singles = [data.batch(n, 0, batch_size=1, micro_batches=1) for n in range(16)]
    for domain in (0, 1):
        mine = [one for one in singles if int(one.domain_B) == domain]
        losses = [mean_next_token_loss(model, [one], 0.0) for one in mine]
        assert losses == pytest.approx(sorted(losses), rel=1e-5)
    scores = np.load(stage.work / SCORES)
    assert len(scores) == len({(d, r) for d, r in rows})

    class Unasked(LlamaForCausalLM):
        def forward(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("a resumed run reads the scores that it has")

    again, same_facts = arrange(stage, settings, shuffled, Unasked(model.config))
    assert rows_read(again, settings) == rows
    assert same_facts == facts


@pytest.mark.filterwarnings("ignore::wrinklefree.train.settings.CurriculumDecayWarning")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "delete the folder"),
        (lambda path: path.write_bytes(b""), "delete the folder"),
        (lambda path: np.save(path, np.zeros(3)), r"scores of shape \(3,\), expected"),
        (lambda path: np.save(path, np.load(path) * np.nan), "finite"),
    ],
)
def test_scores_that_were_damaged_are_refused(
    stage: Stage, make_settings: MakeSettings, damage: Callable[[Path], None], message: str
) -> None:
    settings = make_settings({"data": {"order": "loss"}})
    data, model = open_data(stage, settings), small_model()
    arrange(stage, settings, data, model)
    damage(stage.work / SCORES)
    with pytest.raises(UserError, match=message):
        arrange(stage, settings, data, model)


@pytest.mark.filterwarnings("ignore::wrinklefree.train.settings.CurriculumDecayWarning")
def test_a_model_that_says_nan_scores_nothing(stage: Stage, make_settings: MakeSettings) -> None:
    settings = make_settings({"data": {"order": "loss"}})
    model = small_model()
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(UserError, match="not finite"):
        arrange(stage, settings, open_data(stage, settings), model)
    assert not (stage.work / SCORES).exists()


def test_a_model_without_an_embedding_for_every_id_is_refused_before_training(
    stage: Stage, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    data = open_data(stage, settings)
    with pytest.raises(UserError, match="ids up to 399, but the model's embedding ends at 398"):
        stage_trainer(stage, small_model(399), data, settings)


@pytest.mark.filterwarnings("ignore::wrinklefree.train.settings.CurriculumDecayWarning")
def test_a_model_without_an_embedding_for_every_id_scores_nothing(
    stage: Stage, make_settings: MakeSettings
) -> None:
    settings = make_settings({"data": {"order": "loss"}})
    with pytest.raises(UserError, match="ids up to 399, but the model's embedding ends at 99"):
        arrange(stage, settings, open_data(stage, settings), small_model(100))


def test_rows_longer_than_the_positions_of_the_model_are_refused(
    stage: Stage, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    data = open_data(stage, settings)
    model = small_model()
    model.config.max_position_embeddings = data.sequence_length
    stage_trainer(stage, model, data, settings)
    model.config.max_position_embeddings = data.sequence_length - 1
    with pytest.raises(UserError, match=f"rows have {data.sequence_length} tokens, but the model"):
        stage_trainer(stage, model, data, settings)


def test_rows_longer_than_the_windows_of_layers_are_refused(
    stage: Stage, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    data = open_data(stage, settings)
    model = small_model()
    model.config.sliding_window = data.sequence_length - 1
    model.config.layer_types = ["full_attention"] * model.config.num_hidden_layers
    stage_trainer(stage, model, data, settings)
    for kinds in (["full_attention", "sliding_attention"], None):
        model.config.layer_types = kinds
        with pytest.raises(UserError, match=f"attend to the last {data.sequence_length - 1} only"):
            stage_trainer(stage, model, data, settings)
    model.config.sliding_window = data.sequence_length
    stage_trainer(stage, model, data, settings)


@pytest.mark.parametrize(
    ("kind", "final", "order", "warns"),
    [
        ("cosine", 0.1, "length", True),
        ("linear", 0.29, "loss", True),
        ("cosine", 0.3, "length", False),
        ("constant", 0.0, "length", False),
        ("cosine", 0.1, "shuffled", False),
    ],
)
def test_a_curriculum_whose_end_is_hardly_learnt_from_warns(
    make_settings: MakeSettings, kind: str, final: float, order: str, warns: bool,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    schedule = {"schedule.kind": kind, "schedule.final_lr_fraction": final}
    if warns:
        with pytest.warns(CurriculumDecayWarning, match=f"data.order {order} .* {final:g}"):
            make_settings({**schedule, "data": {"order": order}})
    else:
        make_settings({**schedule, "data": {"order": order}})
        assert not recwarn.list


DIFFUSION = {
    "block_size": 4, "mask_init": "mean", "token_shift": "clean_boundary",
    "loss_weighting": "unit", "complementary_masks": False,
}  # fmt: skip
DISTILLATION = {
    "weights": {"cross_entropy": 1.0, "logits": 1.0, "relations": 0.0},
    "temperature": 1.0,
    "temperature_squared": False,
    "relations": {"layer_fractions": [0.5], "heads": 2, "temperature": 1.0, "causal": True},
}
SHAPE = {
    "hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2, "key_value_heads": 1,
    "rope_theta": 10000.0, "initializer_range": 0.02,
}  # fmt: skip
STAGES: dict[str, tuple[Callable[[Stage], dict[str, Any]], str, dict[str, Any]]] = {
    "base": (make_base, "length", {}),
    "stage2": (continue_pretraining, "loss", {}),
    "dlm": (convert_to_diffusion, "loss", {"diffusion": DIFFUSION}),
    "distill": (distill_student, "loss", DISTILLATION),
}


def section_of(stage: str, training: dict[str, Any]) -> dict[str, Any]:
    """A stage's settings, nested as in the file."""
    if stage == "base":
        del training["lambda_warmup"]
        scratch = {"model": SHAPE, "training": training}
        return {"base": {"source": {"kind": "scratch"}, "scratch": scratch}}
    return {"distill": {"ar": training}} if stage == "distill" else {stage: training}


def prepared(
    name: str, stage: Stage, make_settings: MakeSettings, tmp_path: Path, seed: int = 1, **data: Any
) -> Stage:
    """A training stage under settings ``data``."""
    _, _, more = STAGES[name]
    tokenizer = stage.inputs["mixture"].parent / "tokenizer"
    save_model(tmp_path / "teacher", small_model(quantized=False), ModelFormat(), tokenizer)
    save_model(tmp_path / "model", small_model(), ternary(), tokenizer)
    training = {**make_settings({"data": data}).model_dump(), **more}
    folders = {key: tmp_path / key for key in ("teacher", "model")}
    return replace(
        stage,
        instance="ar",
        settings={"seed": seed, **section_of(name, training)},
        inputs={**stage.inputs, **folders, "tokenizer": tokenizer},
        folder=Path(tempfile.mkdtemp(dir=tmp_path)),
        work=Path(tempfile.mkdtemp(dir=tmp_path)),
    )


def trained(name: str, *given: Any, **chosen: Any) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Facts and history of such a stage."""
    own = prepared(name, *given, **chosen)
    return STAGES[name][0](own), read_history(own.folder)


def test_a_base_begins_with_weights_of_the_seed(
    stage: Stage, make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "stage_trainer", lambda *_, **__: SimpleNamespace(run=dict))
    found = []
    for seed in (1, 1, 2):
        own = prepared("base", stage, make_settings, tmp_path, seed=seed)
        make_base(own)
        found.append(load_model(own.folder)[0].state_dict())
    first, again, other = found
    names = [name for name, tensor in first.items() if not torch.equal(tensor, other[name])]
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert "model.layers.0.self_attn.q_proj.weight" in names


@pytest.mark.parametrize("name", STAGES)
def test_every_training_stage_follows_the_seed(
    name: str, stage: Stage, make_settings: MakeSettings, tmp_path: Path
) -> None:
    losses = [
        trained(name, stage, make_settings, tmp_path, seed=seed)[1][0]["train/loss"]
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.filterwarnings("ignore::wrinklefree.train.settings.CurriculumDecayWarning")
@pytest.mark.parametrize("name", STAGES)
def test_every_training_stage_follows_its_order_and_records_it(
    name: str, stage: Stage, make_settings: MakeSettings, tmp_path: Path
) -> None:
    orders, phases = ("shuffled", STAGES[name][1]), [{"from_step": 4, "weights": LATER}]
    run = partial(trained, name, stage, make_settings, tmp_path, phases=phases)
    facts, histories = zip(*(run(order=order) for order in orders), strict=True)
    assert [found["order"] for found in facts] == list(orders)
    assert [len(found["weight_changes"]) for found in facts] == [2, 2]
    assert facts[0]["epochs"] == facts[1]["epochs"]
    assert histories[0][0]["train/loss"] != histories[1][0]["train/loss"]
    assert histories[1][4]["train/weight/first"] == 1.0


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_moves_weights_records_how_often_each_domain_was_read(
    name: str, stage: Stage, make_settings: MakeSettings, tmp_path: Path
) -> None:
    influence = {"enabled": True, "interval": 2, "step_size": 300.0, "floor": 0.0}
    facts, history = trained(name, stage, make_settings, tmp_path, influence=influence)
    tokens = TrainingData(stage.inputs["mixture"], seed=0).train_tokens
    read = {domain: often * tokens(domain) for domain, often in facts["epochs"].items()}
    for domain, count in read.items():
        meant = sum(entry[f"train/weight/{domain}"] for entry in history) / len(history)
        assert count / sum(read.values()) == pytest.approx(meant, abs=0.05), domain
