from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models import forward
from wrinklefree.train.cached_teacher import (
    CachedTeacher,
    LogitsCache,
    fill_cache,
    row_keys,
)
from wrinklefree.train.distill_settings import DistillationSettings
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.distillation import DenseTeacher, distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.runtime import Runtime

VOCABULARY, STEPS, ROWS = 400, 5, 4


@pytest.fixture
def teacher() -> PreTrainedModel:
    torch.manual_seed(11)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,
        )
    )


def settings(**changes: Any) -> DistillationSettings:
    weights = {"cross_entropy": 0.0, "logits": 1.0, "relations": 0.0}
    return DistillationSettings.model_validate({"weights": weights, **changes})


@pytest.fixture
def written(tmp_path: Path, mixture: Path, teacher: PreTrainedModel) -> Callable[..., LogitsCache]:
    """The logits of the first ``rows`` rows of a training, in ``folder``."""

    def write(
        kept: int = 64, folder: str = "logits", samples: int = STEPS * ROWS, **more: Any
    ) -> LogitsCache:
        found = LogitsCache(tmp_path / folder)
        data = TrainingData(mixture, seed=7)
        runtime = Runtime.here("fp32")
        how = {"rows": samples, "kept": kept, "temperature": 2.0, **more}
        fill_cache(found, teacher, data.batches_of(samples, 3), runtime, **how)
        return found

    return write


CORRUPTIONS = {
    "next token": NextToken(),
    "diffusion": BlockDiffusion(DiffusionSettings(block_size=4), mask_token_id=2, seed=1),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_training_with_written_logits_is_nearly_that_with_the_teacher(
    make_trainer: Callable[..., Trainer],
    written: Callable[..., LogitsCache],
    teacher: PreTrainedModel,
    corruption: str,
    direction: str,
) -> None:
    asks = CORRUPTIONS[corruption]
    kinds: dict[Any, Any] = {"live": DenseTeacher(teacher)}
    for kept in (VOCABULARY - 1, 64, 1):
        logits = written(kept, f"kept-{kept}", mask_token_id=asks.mask_token_id)
        kinds[kept] = CachedTeacher(logits, VOCABULARY)
    histories = {}
    for kind, reads in kinds.items():
        objective = distillation(asks, settings(direction=direction), reads)
        trainer = make_trainer(f"{kind}", objective)
        trainer.run()
        histories[kind] = [entry["distill/logits"] for entry in trainer.state.history]
    live = torch.tensor(histories.pop("live"))
    gaps = {
        kind: ((torch.tensor(found) - live).abs().max() / live.mean()).item()
        for kind, found in histories.items()
    }
    assert gaps[VOCABULARY - 1] < 0.01  # bfloat16
    assert gaps[VOCABULARY - 1] < gaps[64] < gaps[1]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_token_is_taught_what_the_teacher_says_of_it(
    written: Callable[..., LogitsCache], teacher: PreTrainedModel, mixture: Path, corruption: str
) -> None:
    asks = CORRUPTIONS[corruption]
    batch = TrainingData(mixture, seed=7).batch(0, 0, batch_size=4, micro_batches=1)
    question = asks.question(asks.prepare(batch, 0))
    question = question.part(batch.has_predecessor_BT[question.row_N, question.position_N])
    logits = written(VOCABULARY - 1, mask_token_id=asks.mask_token_id)
    student_NV = torch.randn(len(question.target_N), VOCABULARY)
    if asks.mask_token_id is not None:
        student_NV[:, asks.mask_token_id] = float("-inf")
    how = {"temperature": 2.0, "temperature_squared": False, "direction": "forward"}
    found_N, live_N = (
        reads.read(batch, question.piece_BT, {}).divergence_N(student_NV, question, **how)
        for reads in (CachedTeacher(logits, VOCABULARY), DenseTeacher(teacher))
    )
    torch.testing.assert_close(found_N, live_N, rtol=0.01, atol=0.001)
    assert live_N.std() > 0.02


def test_rows_are_written_once_and_found_by_what_they_say(
    written: Callable[..., LogitsCache], mixture: Path, tmp_path: Path
) -> None:
    first = written(samples=8)
    files = sorted(path.name for path in (tmp_path / "logits").iterdir())
    written(samples=8)
    assert sorted(path.name for path in (tmp_path / "logits").iterdir()) == files
    more = written(samples=16)
    assert len(list((tmp_path / "logits").iterdir())) == len(files) + 1
    other = TrainingData(mixture, seed=8)  # another order of the same rows
    keys = [key for batch in other.batches_of(1000, 4) for key in row_keys(batch)]
    for found, samples in ((first, 8), (more, 16)):
        rows = TrainingData(mixture, seed=7).rows_of_run(samples).values()
        assert sum(key in found for key in keys) == sum(map(len, rows))


def test_logits_of_a_row_are_there_some_tokens_at_a_time(
    written: Callable[..., LogitsCache],
    teacher: PreTrainedModel,
    mixture: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens: list[int] = []
    teacher.get_output_embeddings().register_forward_hook(lambda *made: tokens.append(len(made[2])))
    whole = written(folder="whole", samples=4)
    length = max(tokens)
    monkeypatch.setattr(forward, "LEAST_TOKENS", 5)
    monkeypatch.setattr("wrinklefree.kernels.sum_by_blocks.BLOCK_NUMBERS", 0)
    tokens.clear()
    parts = written(folder="parts", samples=4)
    assert max(tokens) == 5 < length
    batches = TrainingData(mixture, seed=7).batches_of(4, 4)
    keys = [key for batch in batches for key in row_keys(batch)]
    for found, expected in zip(parts.read(keys), whole.read(keys), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_row_that_was_not_written_and_a_damaged_file_are_said(
    written: Callable[..., LogitsCache], mixture: Path, tmp_path: Path
) -> None:
    reads = CachedTeacher(written(samples=4), VOCABULARY)
    batch = TrainingData(mixture, seed=7).batch(30, 0, batch_size=2, micro_batches=1)
    with pytest.raises(UserError, match="a row of the training is not among"):
        reads.read(batch, batch.document_ids_BT, {})
    (file,) = (tmp_path / "logits").iterdir()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged; delete it"):
        LogitsCache(tmp_path / "logits")
    file.unlink()
    assert len(LogitsCache(tmp_path / "logits")._found) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {"relations": 1.0}, "relations": {"heads": 2, "causal": True}},
        {"weights": {"relations": 0.0, "hidden": 1.0}},
        {"gradient_ratios": {"hidden": 0.1}},
        {"direction": "confidence"},
    ],
    ids=str,
)
def test_what_needs_the_teacher_in_memory_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="cached_logits is 8: then the teacher is not"):
        settings(cached_logits=8, **changes)
