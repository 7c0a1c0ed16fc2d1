"""Two processes train the model that one trains.

The file is also what the processes run: each trains every case, and leaves what came of it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.errors import UserError
from wrinklefree.kernels.capabilities import gains
from wrinklefree.mixture.loader import HeldOutData, TrainingData
from wrinklefree.models.surgery import insert_bitlinear
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.train import runtime
from wrinklefree.train.cached_teacher import LogitsCache, fill_cache, row_keys
from wrinklefree.train.distill_settings import DistillSettings
from wrinklefree.train.hooks import Hook, Training
from wrinklefree.train.loop import Trainer
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.runtime import Runtime

RANKS = 2
Trained = tuple[Trainer, dict[str, Any]]
Case = Callable[[Path, Path], Trained | str]
"""Trains on a mixture, with a folder for checkpoints of its own; trainer and facts, or a text."""
Alone = Callable[[str], Any]
Together = Callable[[str], list[Any]]


class Stopped(BaseException):
    """What a signal leads to."""


class Heard:
    """A journal that keeps what it is told."""

    label = "training"
    lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append(str(step))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def model_of(seed: int, **changes: Any) -> PreTrainedModel:
    """One of its own in every process: training begins with that of the first."""
    torch.manual_seed(seed + rank())
    shape = {
        "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**shape | changes))


def trainer_of(
    mixture: Path, folder: Path | None, objective: str = "text", **changes: Any
) -> Trainer:
    values: dict[str, Any] = {
        "steps": 6,
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        # In bfloat16 a last bit of a gradient would become a percent of an update's entry.
        "optimizer": {"name": "muon", "muon": {"compute": "float32"}},
        "schedule": {"warmup_steps": 2},
        "clipping": {"name": "zclip", "zclip": {"z_threshold": 0.01, "warmup_steps": 2}},
        "lambda_warmup": {"warmup_steps": 3},
        "relations": {"heads": 2, "causal": True},
    }
    settings = DistillSettings.model_validate(values | changes)
    model = model_of(3)
    insert_bitlinear(model)
    corruption = NextToken()
    if "diffusion" in objective:
        corruption = BlockDiffusion(DiffusionSettings(block_size=4), mask_token_id=399, seed=5)
    chosen = Objective(corruption)
    if "distillation" in objective:
        chosen = distillation(corruption, settings, model_of(8, hidden_size=16))
    data, held_out = TrainingData(mixture, seed=7), HeldOutData(mixture)
    return Trainer(model, data, settings, chosen, held_out=held_out, folder=folder, journal=Heard())


def optimizer(name: str, **changes: Any) -> dict[str, Any]:
    return {"optimizer": {"name": name, name: changes}}


def trained(objective: str, **changes: Any) -> Case:
    def case(mixture: Path, folder: Path) -> Trained:
        trainer = trainer_of(mixture, None, objective, **changes)
        return trainer, trainer.run()

    return case


MUONCLIP = optimizer("muonclip", qk_clip_threshold=0.02, compute="float32")
MEASURED: dict[str, Any] = {
    "evaluate_interval": 2,
    "evaluate_rows_per_domain": 7,
    "telemetry_interval": 3,
    "averaging": {"name": "ema"},
    "data": {"influence": {"enabled": True, "interval": 2}},
}
SAME: dict[str, Case] = {
    "text": trained("text"),
    "diffusion": trained("diffusion", clipping={"name": "fixed"}, **optimizer("apollo")),
    "distillation": trained(
        "distillation", gradient_accumulation_steps=1, clipping={"name": "adagc"},
        **optimizer("adamw8bit"),
    ),
    "diffusion distillation": trained("diffusion distillation", **optimizer("adamw")),
    "muonclip": trained("text", clipping={"name": "none"}, **MUONCLIP),
    "measured": trained("text", **MEASURED),
}  # fmt: skip
"""What two processes do as one does."""


def skipped(mixture: Path, folder: Path) -> Trained:
    """The gradient of one step is not finite, in the last process only."""
    trainer = trainer_of(mixture, None, max_skipped_steps=1)

    def breaks(gradient: Tensor) -> Tensor:
        return gradient * (torch.nan if trainer.state.step == 1 and is_last(trainer) else 1.0)

    trainer.model.get_parameter("model.layers.0.self_attn.q_proj.weight").register_hook(breaks)
    return trainer, trainer.run()


def is_last(trainer: Trainer) -> bool:
    return trainer.runtime.rank == trainer.runtime.ranks - 1


def spiked(mixture: Path, folder: Path) -> Trained:
    """An update that is far too large, from which training goes back."""
    spikes = {"enabled": True, "window": 5, "rollback": True, "skip_steps": 2}
    trainer = trainer_of(
        mixture, folder, steps=16, checkpoint_interval=2, clipping={"name": "none"}, spikes=spikes
    )

    def explode(*_: Any) -> None:
        if trainer.state.step == 9:
            for group in trainer.optimizer.param_groups:
                group["lr"] *= 3000.0

    trainer.optimizer.register_step_pre_hook(explode)
    return trainer, trainer.run()


class Stopping(Hook):
    """Each process is told to stop in another step, the last one first and the others too late."""

    def after_update(self, training: Training) -> None:
        if training.state.step == 2 + training.runtime.ranks - training.runtime.rank:
            signal.raise_signal(signal.SIGTERM)


def stopped(mixture: Path, folder: Path) -> Trained:
    trainer = trainer_of(mixture, folder, checkpoint_interval=100)
    trainer.hooks.append(Stopping())
    before = signal.signal(signal.SIGTERM, stop)
    try:
        trainer.run()
    except Stopped:
        return trainer, {}
    finally:
        signal.signal(signal.SIGTERM, before)
    raise AssertionError("it was not stopped")


def stop(*_: Any) -> None:
    raise Stopped


def resumed(mixture: Path, folder: Path) -> Trained:
    """From a checkpoint that lies there already."""
    trainer = trainer_of(mixture, folder)
    return trainer, trainer.run()


def refused(mixture: Path, folder: Path) -> str:
    with pytest.raises(UserError) as raised:
        trainer_of(mixture, None, batch_size=3)
    return str(raised.value)


def apart(mixture: Path, folder: Path) -> str:
    """Each process has a folder of its own; the first one finds a checkpoint in its."""
    with pytest.raises(UserError) as raised:
        resumed(mixture, folder / ("another" if rank() else "resumed"))
    return str(raised.value)


def exchanged(mixture: Path, folder: Path) -> str:
    """A gradient that one process has, one that none has, and machines of unlike speed."""
    gains("cpu")["bfloat16"] = 9.0 - 8.5 * rank()
    runtime = Runtime.here("auto")
    some, none = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    if rank():
        some.grad = torch.tensor([1.0, 2.0, 3.0])
    runtime.sum_gradients([some, none])
    assert some.grad is not None
    return f"{some.grad.tolist()} {none.grad} {runtime.precision}"


def cached(mixture: Path, folder: Path) -> str:
    """Logits that all write together: passes of the teacher in this process, and what is there."""
    teacher, runtime, passes = model_of(8), Runtime.here("fp32"), []
    runtime.place(teacher)
    teacher.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    batches = list(TrainingData(mixture, seed=7).batches_of(20, 3))

    def filled() -> LogitsCache:
        cache = LogitsCache(folder)
        fill_cache(cache, teacher, batches, runtime, rows=20, kept=8, temperature=2.0)
        return cache

    found = filled().read([key for batch in batches for key in row_keys(batch)])
    filled()  # when there is nothing to do
    return f"{len(passes)} of {len(batches)}, {[tensor.double().sum().item() for tensor in found]}"


CASES: dict[str, Case] = {
    **SAME, "cached": cached, "skipped": skipped, "spiked": spiked, "stopped": stopped,
    "resumed": resumed, "refused": refused, "apart": apart, "exchanged": exchanged,
}  # fmt: skip


def outcome(case: str, mixture: Path, folder: Path) -> Any:
    Heard.lines.clear()
    came = CASES[case](mixture, folder)
    if isinstance(came, str):
        return came
    trainer, facts = came
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return trainer.state.history, weights, facts, list(Heard.lines)


@pytest.fixture(scope="module")
def alone(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """What comes of a case in one process."""
    folder = tmp_path_factory.mktemp("alone")
    known: dict[str, Any] = {}

    def get(case: str) -> Any:
        if case not in known:
            known[case] = outcome(case, mixture, folder / case)
        return known[case]

    return get


@pytest.fixture(scope="module")
def folder(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained every case."""
    root = tmp_path_factory.mktemp("together")
    stopped(mixture, root / "resumed")
    shutil.copytree(root / "resumed", root / "apart" / "resumed")  # a checkpoint knows its folder
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}",
        __file__, str(mixture), str(root),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    return root


@pytest.fixture(scope="module")
def together(folder: Path) -> Together:
    """What came of a case, in each of the processes."""
    return lambda case: [torch.load(folder / f"{case}-{number}.pt") for number in range(RANKS)]


def without_telemetry(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """What is of all rows: activations are watched in the first process only."""
    return [
        {name: value for name, value in entry.items() if not name.startswith("activation/")}
        for entry in history
    ]


def assert_close(together: Any, alone: Any) -> None:
    """Within what another order of float32 sums makes of losses and weights."""
    (history, weights, *_), (expected, expected_weights, *_) = together, alone
    assert [list(entry) for entry in history] == [list(entry) for entry in expected]
    for mine, theirs in zip(*map(without_telemetry, (history, expected)), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-7)
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)


def assert_alike(processes: list[Any]) -> None:
    """To the bit."""
    (history, weights, facts, _), (other_history, other_weights, other_facts, told) = processes
    assert without_telemetry(history) == without_telemetry(other_history)
    assert all(torch.equal(weight, other_weights[name]) for name, weight in weights.items())
    assert facts == other_facts
    assert told == [], "one speaks for all"


@pytest.mark.parametrize("case", SAME)
def test_two_processes_train_the_model_that_one_trains(case: str, alone: Alone, together: Together):
    processes = together(case)
    assert_alike(processes)
    assert_close(processes[0], alone(case))


def test_a_step_that_is_not_finite_in_one_process_is_left_out_by_both(
    alone: Alone, together: Together
):
    processes = together("skipped")
    assert_alike(processes)
    assert_close(processes[0], alone("skipped"))
    assert [entry.get("train/skipped") for entry in processes[0][0]] == [None, 1.0] + [None] * 4


def test_both_go_back_from_a_spike(alone: Alone, together: Together):
    processes = together("spiked")
    assert_alike(processes)
    events = [facts["spikes"] for _, _, facts, _ in (processes[0], alone("spiked"))]
    assert len(events[0]) == 1
    for name in ("step", "went_back_to"):
        assert events[0][0][name] == events[1][0][name] > 0


def test_a_signal_to_one_lets_both_leave_with_one_checkpoint(folder: Path, together: Together):
    processes = together("stopped")
    assert_alike(processes)
    assert len(processes[0][0]) == 4, "the step in which it came is the last one"
    assert [path.name for path in (folder / "stopped").glob("step-*")] == ["step-00000004"]


def test_one_process_goes_on_from_what_two_have_left(
    mixture: Path, folder: Path, alone: Alone, together: Together, tmp_path: Path
):
    shutil.copytree(folder / "stopped", tmp_path / "stopped")
    trainer, facts = resumed(mixture, tmp_path / "stopped")
    weights = dict(trainer.model.named_parameters())
    assert trainer.state.history[:4] == together("stopped")[0][0]
    assert_close((trainer.state.history, weights, facts), alone("text"))


def test_two_processes_go_on_from_what_one_has_left(alone: Alone, together: Together):
    processes = together("resumed")
    assert_alike(processes)
    assert processes[0][0][:4] == alone("text")[0][:4]
    assert_close(processes[0], alone("text"))


def test_the_passes_of_a_teacher_whose_logits_are_written_are_shared(together: Together):
    one, other = together("cached")
    assert one == other and one.startswith("4 of 8, ")


def test_what_processes_cannot_do_together_is_said_by_each(together: Together):
    for process in together("refused"):
        assert process.startswith("batch_size is 3, and 2 processes share the rows of a micro-bat")
    for process in together("apart"):
        assert "the processes of this training find checkpoints of steps 0, 4 there" in process


def test_what_one_process_lacks_is_that_of_the_other(together: Together):
    assert together("exchanged") == ["[1.0, 2.0, 3.0] None fp32"] * RANKS


if __name__ == "__main__":
    of_mixture, root = map(Path, sys.argv[1:3])
    for name in sys.argv[3:] or CASES:
        torch.save(outcome(name, of_mixture, root / name), root / f"{name}-{rank()}.pt")


def test_codes_of_weights_that_another_process_replaced_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
):
    layer, activation = BitLinear(64, 32), torch.randn(2, 64)
    before = layer(activation)
    # As a broadcast does: what it writes is not counted as a change.
    monkeypatch.setattr(
        runtime.distributed, "broadcast", lambda tensor, source: tensor.data.copy_(-tensor)
    )
    replace(Runtime.here("fp32"), ranks=2).place(layer)
    assert torch.equal(layer(activation), -before)
