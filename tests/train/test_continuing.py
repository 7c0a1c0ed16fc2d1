"""A training goes on by itself where nothing differs, and from anything else when it is asked to.

The stage runs as it does for an engine, with a model of its own that is as small as can be.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree import cli
from wrinklefree.errors import UserError
from wrinklefree.mixture.loader import TrainingData
from wrinklefree.models.surgery import insert_bitlinear
from wrinklefree.tracking import stage as frame
from wrinklefree.tracking.artifact import read_manifest
from wrinklefree.tracking.kept import FORCED
from wrinklefree.tracking.stage import Stage, stage_main
from wrinklefree.tracking.trainings import checkpoints_in, trainings
from wrinklefree.train.averaging import Averaging
from wrinklefree.train.history import read_history
from wrinklefree.train.in_stage import stage_trainer
from wrinklefree.train.loop import Trainer
from wrinklefree.train.settings import QuantizedTrainingSettings

PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / "workflow" / "scripts" / "stage2.py"
ROOT, OUTPUT = Path("work/stage2"), Path("models/stage2")
MakeSettings = Callable[..., QuantizedTrainingSettings]


class Tracked:
    """Stands in for the MLflow run."""

    tags: dict[str, str] = {}
    """Of the last run."""

    id = ""

    def __init__(self, label: str, work: Path) -> None:
        Tracked.tags = {}

    def log_tags(self, tags: dict[str, str]) -> None:
        Tracked.tags.update(tags)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Run:
    """Runs the stage in a project of its own: its exit status, what it said, how it trained."""

    def __init__(
        self, mixture: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        self.mixture, self.settings = mixture, settings
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.said = ""
        self.rates: list[float] = []
        self.hidden = 32

    def __call__(self, *, stop_at: int | None = None, **changes: Any) -> int:
        settings = copy.deepcopy(self.settings)
        for path, value in changes.items():
            *parents, last = path.split("__")
            target = settings
            for key in parents:
                target = target[key]
            target[last] = value
        sections = json.dumps({"seed": 1, "stage2": settings})
        command = [str(SCRIPT), "--settings", sections, "--output", str(OUTPUT)]
        self.monkeypatch.setattr(sys, "argv", command)
        self.rates = []

        def function(stage: Stage) -> dict[str, Any]:
            trainer = train(stage, self.mixture, self.hidden)
            trainer.optimizer.register_step_pre_hook(self._note)
            if stop_at is not None:
                stop_in(trainer, stop_at)
            return finish(stage, trainer)

        self.capsys.readouterr()
        try:
            stage_main("stage2", function)
            status = 0
        except SystemExit as exit_:
            assert isinstance(exit_.code, int)
            status = exit_.code
        self.said = self.capsys.readouterr().err
        return status

    def _note(self, optimizer: Any, *_: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    @property
    def weights(self) -> bytes:
        return (OUTPUT / "model.safetensors").read_bytes()


def train(stage: Stage, mixture: Path, hidden: int = 32) -> Trainer:
    settings = stage.section("stage2", QuantizedTrainingSettings)
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=hidden, intermediate_size=48, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
        )
    )  # fmt: skip
    insert_bitlinear(model)
    data = TrainingData(mixture, seed=7)
    return stage_trainer(replace(stage, inputs={"mixture": mixture}), model, data, settings)


def finish(stage: Stage, trainer: Trainer) -> dict[str, Any]:
    facts = trainer.run()
    save_file(dict(trainer.model.named_parameters()), stage.folder / "model.safetensors")
    return facts


def stop_in(trainer: Trainer, step: int) -> None:
    """SIGTERM once ``step`` steps are done."""

    def stop(*_: Any) -> None:
        if trainer.state.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.optimizer.register_step_post_hook(stop)


@pytest.fixture
def run(
    mixture: Path,
    make_settings: MakeSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(frame, "StageRun", Tracked)
    before = signal.getsignal(signal.SIGTERM)
    settings = make_settings().model_dump(mode="json", exclude_none=True)
    yield Run(mixture, settings, monkeypatch, capsys)
    signal.signal(signal.SIGTERM, before)


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["wrinklefree", "continue", *arguments])
    try:
        cli.main()
    except SystemExit as exit_:
        assert isinstance(exit_.code, int)
        return exit_.code
    return 0


def test_a_stopped_stage_goes_on_from_its_last_step_with_the_same_bytes(run: Run):
    assert run() == 0
    expected = run.weights
    assert run(optimizer__muon__weight_decay=0.1, stop_at=3, checkpoint_interval=100) == 143
    assert "step 3 is saved before leaving" in run.said
    assert "terminated; run again to go on from the last checkpoint" in run.said
    assert run(optimizer__muon__weight_decay=0.1) == 0, (
        "under another interval, which counts for nothing"
    )
    assert "going on from step 3" in run.said
    assert run.weights == expected


def test_the_last_checkpoint_outlives_a_finished_run_and_is_not_gone_on_from_unasked(run: Run):
    assert run() == 0
    expected = run.weights
    (kept,) = trainings(ROOT)
    assert kept.step == 5
    assert sorted(path.name for path in kept.folder.iterdir()) == [
        "history.jsonl", "origin.json", "step-00000005",
    ]  # fmt: skip
    assert run() == 0
    assert len(run.rates) == 5, "trained again"
    assert "starts from its beginning; a run of before is kept at step 5" in run.said
    assert "differs: nothing: it had finished" in run.said
    assert run.weights == expected


def test_a_stage_that_starts_afresh_names_the_checkpoint_and_what_differs(run: Run):
    assert run(stop_at=3) == 143
    (old,) = trainings(ROOT)
    assert run(steps=6, optimizer__muon__lr=0.0008) == 0
    assert len(run.rates) == 6
    line = next(line for line in run.said.splitlines() if "a run of before" in line)
    assert "is kept at step 3" in line
    assert "stage2.optimizer.muon.lr: 0.0009 -> 0.0008, stage2.steps: 5 -> 6." in line
    assert f"wrinklefree continue stage2 --from {old.key} makes" in line
    assert "code" not in line and "versions" not in line
    assert "continued_from" not in read_manifest(OUTPUT).facts
    assert run(stop_at=4) == 143
    assert "going on from step 3" in run.said, "what was not finished is still there"


@pytest.mark.parametrize(
    ("function", "found", "named"),
    [("code_digest", "another", "code. "), ("library_versions", {"torch": "1"}, "versions")],
)
def test_other_code_and_libraries_are_named(
    run: Run, monkeypatch: pytest.MonkeyPatch, function: str, found: Any, named: str
):
    assert run(stop_at=3) == 143
    monkeypatch.setattr(frame, function, lambda *_: found)
    assert run(stop_at=1) == 143
    assert f"from which differs: {named}" in run.said


def test_a_continued_training_that_is_killed_at_once_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    assert run() == 0
    assert ask(monkeypatch, "stage2") == 0
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", killed)
        assert run(steps=8) == 130
    assert run(steps=8) == 0
    assert len(run.rates) == 3
    assert read_manifest(OUTPUT).facts["continued_from"]["step"] == 5


def test_who_asks_to_continue_is_not_given_the_kept_copy(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FORCED, "")  # as an engine that forces nothing
    assert run() == 0
    shutil.rmtree(OUTPUT)
    assert ask(monkeypatch, "stage2") == 0
    assert run() == 2
    assert "steps is 5, and the training to go on from has taken 5" in run.said


def test_a_kept_training_that_is_asked_for_outlives_a_rerun_that_was_killed(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    assert run() == 0
    (kept,) = trainings(ROOT)
    assert run(stop_at=3) == 143
    assert ask(monkeypatch, "stage2", "--from", kept.key) == 0
    run()
    assert (kept.key, 5) in [(training.key, training.step) for training in trainings(ROOT)]


def test_a_continued_training_goes_on_under_the_new_settings(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    assert run() == 0
    (old,) = trainings(ROOT)
    assert ask(monkeypatch, "stage2") == 0
    changes: dict[str, Any] = {
        "steps": 8, "optimizer__muon__lr": 0.0002, "schedule__kind": "constant",
        "optimizer__muon__weight_decay": 0.05,
    }  # fmt: skip
    assert run(**changes) == 0
    assert run.rates == pytest.approx([0.0002] * 3), "three steps more, at the new rate"
    facts = read_manifest(OUTPUT).facts
    assert facts["steps"] == 8
    event = facts["continued_from"]
    assert event["step"] == 5 and f"{event['key']}.kept" == old.key
    assert event["changed"] == [
        "stage2.optimizer.muon.lr: 0.0009 -> 0.0002",
        "stage2.optimizer.muon.weight_decay: 0.1 -> 0.05",
        'stage2.schedule.kind: "cosine" -> "constant"',
        "stage2.steps: 5 -> 8",
    ]
    assert json.loads(Tracked.tags["wrinklefree.continued_from"]) == event
    assert [entry["step"] for entry in read_history(OUTPUT)] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_state_of_the_optimizer_goes_on_and_its_settings_are_the_new_ones(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    """By hand: the weights of then, the momentum of then, and the new decay."""
    assert run() == 0
    checkpoint = trainings(ROOT)[0].checkpoint
    weight = load_file(checkpoint / "model.safetensors")
    parts = torch.load(checkpoint / "parts.pt", weights_only=True)
    assert ask(monkeypatch, "stage2") == 0
    seen: dict[str, Any] = {}

    def step(trainer: Trainer, number: int) -> dict[str, float]:
        seen["weights"] = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        seen["optimizer"] = copy.deepcopy(trainer.optimizer.state_dict())
        seen["clipper"] = trainer.clipper.state_dict()
        raise UserError("seen")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        assert run(steps=9, optimizer__muon__weight_decay=0.05) == 2
    assert all(torch.equal(seen["weights"][name], weight[name]) for name in weight)
    torch.testing.assert_close(seen["optimizer"]["state"], parts["optimizer"]["state"])
    assert seen["clipper"] == parts["clipper"]
    assert {group["weight_decay"] for group in seen["optimizer"]["param_groups"]} >= {0.05}
    assert 0.1 not in {group["weight_decay"] for group in seen["optimizer"]["param_groups"]}


@pytest.mark.parametrize(("before", "averaged"), [("last", 3), ("ema", 3), ("longer", 8)], ids=str)
def test_an_average_is_of_the_models_that_the_settings_of_now_name(
    run: Run, monkeypatch: pytest.MonkeyPatch, before: str, averaged: int
):
    """Of the last three, whatever was averaged before; a running mean goes on."""
    taken: list[dict[str, torch.Tensor]] = []
    step = Averaging.after_step

    def noted(average: Averaging, training: Any, entry: dict[str, float]) -> None:
        taken.append({n: p.detach().clone() for n, p in training.model.named_parameters()})
        step(average, training, entry)

    monkeypatch.setattr(Averaging, "after_step", noted)
    last = {"name": "last", "last": {"checkpoints": 3, "interval": 1}}
    ema = {"name": "ema", "ema": {"decay": 0.7}}
    assert run(averaging=last if before == "last" else ema) == 0
    assert ask(monkeypatch, "stage2") == 0
    assert run(steps=8, averaging=ema if before == "longer" else last) == 0
    assert read_manifest(OUTPUT).facts["averaging"]["averaged"] == averaged
    for name, mean in load_file(OUTPUT / "model.safetensors").items():
        expected = torch.stack([model[name] for model in taken[-3:]]).mean(0)
        if before == "longer":
            expected = taken[0][name]
            for model in taken[1:]:
                expected = expected.lerp(model[name], 1 - 0.7)
        torch.testing.assert_close(mean, expected)


def test_the_wish_is_fulfilled_once_and_a_killed_run_that_was_continued_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    assert run() == 0
    assert ask(monkeypatch, "stage2") == 0
    assert run(steps=8) == 0
    expected = run.weights
    for old in trainings(ROOT):
        if old.step == 8:
            for path in sorted(old.folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            old.folder.rmdir()
    assert ask(monkeypatch, "stage2") == 0
    assert run(steps=8, stop_at=7) == 143
    assert run(steps=8) == 0
    assert "going on from step 7" in run.said
    assert run.weights == expected
    assert read_manifest(OUTPUT).facts["continued_from"]["step"] == 5
    assert run(steps=8) == 0
    assert len(run.rates) == 8, "the wish was fulfilled"
    assert run.weights != expected and "continued_from" not in read_manifest(OUTPUT).facts


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "another optimizer": (
        {
            "steps": 9,
            "optimizer": {"name": "adamw", "adamw": {"lr": 0.0009, "weight_decay": 0.1}},
        },
        32,
        "optimizer is not of this training: its groups of parameters or their settings are others"),
    "another shape": ({"steps": 9}, 64, r"model.safetensors: \S+ is torch.float32 \[.*, expected"),
    "nothing left to train": ({}, 32, "steps is 5, and the training to go on from has taken 5"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "hidden", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_gone_on_from_is_one_sentence_and_stays_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], hidden: int, message: str
):
    assert run() == 0
    assert ask(monkeypatch, "stage2") == 0
    run.hidden = hidden
    for _ in range(2):  # an engine that tries again must not start afresh in silence
        assert run(**changes) == 2
        (line,) = [line for line in run.said.splitlines() if line.startswith("error: ")]
        assert re.search(message, line) and "delete work/stage2/continue.json" in line
        assert run.rates == []
    (ROOT / "continue.json").unlink()
    assert run(**changes) == 0


def test_another_training_than_the_newest_can_be_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(stop_at=4) == 143
    (old,) = trainings(ROOT)
    assert run(optimizer__muon__lr=0.0008, stop_at=1) == 143
    assert trainings(ROOT)[0].step == 1
    assert ask(monkeypatch, "stage2", "--from", "none") == 2
    assert f"there are: {trainings(ROOT)[0].key} (step 1), {old.key} (step 4)" in (
        capsys.readouterr().err
    )
    assert ask(monkeypatch, "stage2", "--from", old.key) == 0
    assert run(optimizer__muon__lr=0.0008) == 0
    assert len(run.rates) == 1
    assert read_manifest(OUTPUT).facts["continued_from"]["step"] == 4


def test_to_continue_what_has_no_checkpoint_is_an_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(stop_at=2) == 143
    for name in ("distill.ar", "../stage2", "kept"):
        assert ask(monkeypatch, name) == 2
        assert f"error: {name}: no checkpoint of this stage is kept; there are of: stage2" in (
            capsys.readouterr().err
        )


def test_a_stage_of_several_models_names_where_it_was_stopped(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert run(stop_at=2) == 143
    part = Path("work/architecture.moe/0123456789abcdef/distill_ar")
    part.parent.mkdir(parents=True)
    trainings(ROOT)[0].folder.rename(part)
    assert ask(monkeypatch, "architecture.moe") == 2
    said = capsys.readouterr().err
    assert "goes on by itself where nothing differs; it can't be told" in said
    assert f"{part} (step 2)" in said


def test_the_newest_few_are_kept(run: Run):
    for steps in (5, 6, 7, 8, 9):
        assert run(steps=steps, stop_at=steps - 1 if steps == 6 else None) in (0, 143)
    assert [training.step for training in trainings(ROOT)] == [9, 8, 7]
    assert all(len(checkpoints_in(training.folder)) == 1 for training in trainings(ROOT))
    assert len(list(ROOT.iterdir())) == 3


def test_a_continued_training_whose_checkpoints_are_gone_is_not_begun_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    assert run() == 0
    assert ask(monkeypatch, "stage2") == 0
    assert run(steps=8, stop_at=7) == 143
    live = next(training for training in trainings(ROOT) if training.step == 7)
    for _, folder in checkpoints_in(live.folder):
        (folder / "parts.pt").write_bytes(b"none")
    assert run(steps=8) == 2
    assert "no checkpoint can be read of this training, which had gone on from" in run.said


AS_A_STAGE = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_continuing
from wrinklefree.tracking import stage as frame
frame.StageRun = test_continuing.Tracked
def function(stage):
    trainer = test_continuing.train(stage, Path({mixture!r}))
    trainer.optimizer.register_step_pre_hook(lambda *_: time.sleep(0.05))
    return test_continuing.finish(stage, trainer)
sys.argv[0] = {script!r}
frame.stage_main("stage2", function)
"""


def test_a_process_that_is_killed_between_checkpoints_loses_no_step(run: Run):
    Path("run.py").write_text(
        AS_A_STAGE.format(
            tests=str(Path(__file__).parent), mixture=str(run.mixture), script=str(SCRIPT)
        )
    )
    changes = {"steps": 40, "checkpoint_interval": 1000, "log_interval": 1}
    sections = json.dumps({"seed": 1, "stage2": {**run.settings, **changes}})
    command = [sys.executable, "run.py", "--settings", sections, "--output", str(OUTPUT)]

    def start() -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(PROJECT / "src")}
        return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, env=environment)

    process, said = start(), ""
    assert process.stderr
    while "9 of 40 steps" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGTERM)
    said += process.communicate()[1]
    assert process.returncode == 143
    reached = max(int(step) for step in re.findall(r"(\d+) of 40 steps", said))
    assert 9 <= reached < 40
    assert f"step {reached} is saved before leaving" in said
    assert not OUTPUT.exists()
    assert f"going on from step {reached}\n" in start().communicate()[1]
    resumed = run.weights
    assert run(**changes) == 0 and len(run.rates) == 40
    assert run.weights == resumed
    assert len(read_history(OUTPUT)) == 40
