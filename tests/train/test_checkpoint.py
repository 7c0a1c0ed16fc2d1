from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from wrinklefree.tracking.artifact import Origin, read_manifest, writing_artifact
from wrinklefree.train.history import HistoryFile, read_history
from wrinklefree.train.loop import Trainer

NAN = math.nan
NORM = "model.norm.weight"
Change = Callable[[Any], Any]


@pytest.fixture
def make_trainer(make_trainer: Callable[..., Trainer]) -> Callable[..., Trainer]:
    """A training of five steps that writes checkpoints after steps 2, 4 and 5."""
    return partial(make_trainer, shape={"tie_word_embeddings": True})


def state_of(trainer: Trainer) -> dict[str, Any]:
    """Copies of all that a checkpoint could change."""
    parts = {name: part.state_dict() for name, part in trainer.state.parts.items()}
    tensors = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    return {"tensors": tensors, "parts": parts, "history": list(trainer.state.history)}


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def seal_again(folder: Path, change: Callable[[Path], Any]) -> None:
    """Change a checkpoint and give it a manifest that fits, as whoever copies one would."""
    manifest = read_manifest(folder)
    fields = ("stage", "inputs", "settings")
    origin = Origin(**{name: getattr(manifest, name) for name in fields})
    with writing_artifact(folder, origin) as (partial, facts):
        for name in manifest.files:
            shutil.copy(folder / name, partial / name)
        facts.update(manifest.facts)
        if isinstance(changed := change(partial), dict):
            facts.update(changed)


def tensors(change: Change) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return edit


def parts(change: Change) -> Callable[[Path], Any]:
    def edit(folder: Path) -> None:
        found = torch.load(folder / "parts.pt", weights_only=True)
        change(found)
        torch.save(found, folder / "parts.pt")

    return edit


def optimizer_state(change: Change) -> Callable[[Path], Any]:
    """Of the first parameter, a matrix that Muon trains."""
    return parts(lambda found: change(found["optimizer"]["state"][0]))


def history(change: Callable[[list[str]], list[str]]) -> Callable[[Path], Any]:
    """That of the training, and what the checkpoint records of it."""

    def edit(folder: Path) -> dict[str, Any]:
        path = folder.parent / "history.jsonl"
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
        return {"history": HistoryFile(path.read_bytes()).record}

    return edit


def entry(**changes: Any) -> Callable[[Path], Any]:
    """The last entry of the history, changed; None takes a key out."""

    def change(lines: list[str]) -> list[str]:
        last = {**json.loads(lines[-1]), **changes}
        return [*lines[:-1], json.dumps({k: v for k, v in last.items() if v is not None})]

    return history(change)


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "weights that are none": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"none"), "not a whole safetens"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(), "not a whole safetensors"),
    "a tensor less": (tensors(lambda found: found.pop(NORM)), f"{NORM} is missing"),
    "a tensor more": (
        tensors(lambda found: found.update(x=torch.ones(1))), "x is unexpected"),
    "another shape": (
        tensors(lambda found: found.update({NORM: torch.ones(3)})), r"norm.weight is .*\[3\], exp"),
    "another type": (
        tensors(lambda found: found.update({NORM: torch.ones(32).half()})), "is torch.float16"),
    "weights with NaN": (
        tensors(lambda found: found[NORM].fill_(NAN)), f"{NORM} has values that are NaN"),
    "parts that are none": (
        lambda folder: (folder / "parts.pt").write_bytes(b"none"), r"parts\.pt: holds something"),
    "a list for parts": (
        lambda folder: torch.save([1], folder / "parts.pt"), "expected the state of optimizer, cl"),
    "no clipper": (parts(lambda found: found.pop("clipper")), "expected the state of optimizer"),
    "no mapping": (parts(lambda found: found.update(clipper=3)), "expected a mapping for each"),
    "no optimizer's": (
        parts(lambda found: found.update(optimizer={"a": 1})), "no state of an optimizer"),
    "another weight decay": (
        parts(lambda found: found["optimizer"]["param_groups"][0].update(weight_decay=0.5)),
        "optimizer is not of this training: its groups"),
    "no rate": (
        parts(lambda found: found["optimizer"]["param_groups"][0].pop("lr")), "its groups"),
    "a group less": (
        parts(lambda found: found["optimizer"]["param_groups"].pop()), "its groups"),
    "momentum of another shape": (
        optimizer_state(lambda state: state.update(momentum_buffer=torch.ones(3, 3))),
        r"momentum_buffer of a parameter is .*\[3, 3\]"),
    "momentum with NaN": (
        optimizer_state(lambda state: state["momentum_buffer"].fill_(NAN)),
        "momentum_buffer of a parameter has values that are NaN"),
    "momentum under another name": (
        optimizer_state(lambda state: state.update(exp_avg=state.pop("momentum_buffer"))),
        "the state of a parameter is not momentum_buffer"),
    "momentum in words": (
        optimizer_state(lambda state: state.update(momentum_buffer="much")),
        "momentum_buffer of a parameter is 'much'"),
    "a count of steps that is NaN": (
        parts(lambda found: found["optimizer"]["state"][7]["step"].fill_(NAN)),
        "step of a parameter has values that are NaN"),
    "no momentum": (
        parts(lambda found: found["optimizer"]["state"].pop(0)), "lacks the state of a parameter"),
    "no momenta": (
        parts(lambda found: found["optimizer"]["state"].clear()), "lacks the state of a param"),
    "a clipper of other values": (
        parts(lambda found: found["clipper"].pop("mean")), "clipper is not of this training: exp"),
    "a clipper of words": (
        parts(lambda found: found["clipper"].update(mean="big")), "mean is 'big'"),
    "a clipper with NaN": (parts(lambda found: found["clipper"].update(mean=NAN)), "mean is nan"),
    "a history that is none": (
        history(lambda lines: [*lines[:-1], "{"]), "not the history of a training"),
    "a step less": (history(lambda lines: lines[:-1]), "4 steps, expected 5 by the folder's name"),
    "a step twice": (
        history(lambda lines: [*lines[:-1], lines[-2]]), "line 5 is not the metrics of step 5"),
    "a step of no mapping": (history(lambda lines: [*lines[:-1], "3"]), "line 5 is not the metr"),
    "a step without loss": (entry(**{"train/loss": None}), "line 5 is not the metrics of step 5"),
    "a loss in words": (entry(**{"train/loss": "low"}), "line 5 is not the metrics of step 5"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_a_whole_checkpoint_that_is_not_of_this_training_is_passed_over_by_name(
    make_trainer: Callable[..., Trainer], change: Callable[[Path], Any], message: str
) -> None:
    first = make_trainer()
    first.run()
    seal_again(first.folder / "step-00000005", change)
    again = make_trainer()
    (complaint,) = again.state.restore(again.folder)
    assert again.state.step == 4
    assert "step-00000005" in complaint and re.search(message, complaint)
    again.run()
    assert equal(state_of(again), state_of(first))
    assert not make_trainer().state.restore(again.folder), "the good one stands in its place"


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_nothing_of_a_foreign_checkpoint_is_loaded(
    make_trainer: Callable[..., Trainer], change: Callable[[Path], Any], message: str
) -> None:
    first = make_trainer()
    first.run()
    shutil.rmtree(first.folder / "step-00000004")
    seal_again(first.folder / "step-00000005", change)
    again = make_trainer()
    untouched = state_of(make_trainer("other"))
    assert len(again.state.restore(again.folder)) == 1
    assert again.state.step == 0
    assert equal(state_of(again), untouched)
    assert (first.folder / "step-00000005").is_dir()


class Harmful:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_is_not_run(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    first = make_trainer()
    first.run()
    ran = tmp_path / "ran"
    seal_again(
        first.folder / "step-00000005",
        parts(lambda found: found.update(clipper=Harmful(ran))),
    )
    again = make_trainer()
    (complaint,) = again.state.restore(again.folder)
    assert "would run code when read" in complaint and "weights_only" not in complaint
    assert again.state.step == 4 and not ran.exists()


def test_the_state_of_another_optimizer_is_passed_over(
    make_trainer: Callable[..., Trainer],
) -> None:
    adamw = {"name": "adamw", "adamw": {"lr": 0.0009, "weight_decay": 0.1}}
    other = make_trainer("other", optimizer=adamw)
    other.run()
    first = make_trainer()
    first.run()
    theirs = other.folder / "step-00000005" / "parts.pt"
    seal_again(first.folder / "step-00000005", lambda folder: shutil.copy(theirs, folder))
    again = make_trainer()
    (complaint,) = again.state.restore(again.folder)
    assert "optimizer is not of this training: its groups" in complaint


@pytest.mark.parametrize("source", ["one/work/step-00000004", "other/elsewhere/step-00000005"])
def test_a_checkpoint_of_another_step_or_training_is_passed_over(
    make_trainer: Callable[..., Trainer], tmp_path: Path, source: str
) -> None:
    first = make_trainer()
    first.run()
    other = make_trainer("other")
    other.folder = tmp_path / "other" / "elsewhere"
    other.run()
    shutil.rmtree(first.folder / "step-00000005")
    shutil.copytree(tmp_path / source, first.folder / "step-00000005")
    again = make_trainer()
    (complaint,) = again.state.restore(again.folder)
    assert "step-00000005: written by another training or for another step" in complaint
    assert again.state.step == 4


def test_what_is_no_checkpoint_is_left_alone(make_trainer: Callable[..., Trainer]) -> None:
    reference = make_trainer("reference")
    reference.run()
    trainer = make_trainer()
    work = trainer.folder
    strays = ["step-garbage", "step-", "step-1", "step-00000003.bak", "step-0000000x"]
    for name in strays:
        (work / name).mkdir(parents=True)
        (work / name / "precious").write_text("ours")
    (work / "step-notes").write_text("ours")
    (work / "step-00000099").write_text("ours")
    trainer.run()
    assert {path.name for path in work.iterdir()} == {
        *strays, "step-notes", "step-00000099", "step-00000004", "step-00000005", "history.jsonl",
    }  # fmt: skip
    assert all((work / name / "precious").read_text() == "ours" for name in strays)
    again = make_trainer()
    assert again.state.restore(work) == []
    assert equal(state_of(again), state_of(reference))


def test_without_one_good_checkpoint_training_starts_anew_and_ends_the_same(
    make_trainer: Callable[..., Trainer], capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_trainer()
    first.run()
    for folder in sorted(first.folder.glob("step-*")):
        seal_again(folder, tensors(lambda found: found.pop(NORM)))
    again = make_trainer()
    capsys.readouterr()
    again.run()
    said = capsys.readouterr().err
    assert said.count("a checkpoint was passed over") == 2
    assert "going on from step 0" in said
    assert equal(state_of(again), state_of(first))
    assert read_history(again.journal._stage.folder) == first.state.history
