"""What a checkpoint holds, read and checked as a whole before anything of it is used.

A manifest says that files are as they were written, not that they belong to this training: a folder
may have been copied here from another one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from wrinklefree.errors import UserError
from wrinklefree.optim.combined import CombinedOptimizer
from wrinklefree.tracking.artifact import open_artifact
from wrinklefree.tracking.trainings import key_of
from wrinklefree.train.history import HISTORY, HistoryFile, read_history_up_to

WEIGHTS, PARTS = "model.safetensors", "parts.pt"


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``len(history)`` steps."""

    tensors: dict[str, Tensor]
    parts: dict[str, dict[str, Any]]
    history: list[dict[str, float]]
    file: HistoryFile
    """Which holds ``history``."""


def checkpoint_settings(work: Path, step: int) -> dict[str, Any]:
    """What the manifest of a checkpoint says: the training, by the name of its folder, and step."""
    return {"training": key_of(work), "step": step}


def read_checkpoint(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    parts: dict[str, Any],
    *,
    precision: str | None,
) -> Checkpoint:
    """The checkpoint of ``step`` in ``folder``, found to fit the training that asks for it.

    Parameters
    ----------
    tensors : of the training, by name; they are left as they are.
    parts : optimizer and others of the training, by name; they are left as they are.
    precision : that of the training. None: the checkpoint may be of other settings, precision and
        the optimizer's among them; the state comes with the training's own, to go on under.

    Raises
    ------
    UserError : a file is damaged, or is not of this training; it says which and why.
    """
    manifest = open_artifact(folder).manifest
    settings, other_settings = manifest.settings, precision is None
    if settings != checkpoint_settings(folder.parent, step):
        raise UserError(f"{folder}: written by another training or for another step ({settings})")
    if not other_settings and (before := manifest.facts.get("precision")) != precision:
        raise UserError(
            f"{folder}: computed in {before}, and this training computes in {precision}, which is"
            f" what precision: auto means on this machine; set precision: {before} to go on"
        )
    found = Checkpoint(
        _read_tensors(folder / WEIGHTS, tensors),
        _read_parts(folder / PARTS, parts),
        *_read_history(folder, manifest.facts.get("history"), step),
    )
    for name, part in parts.items():
        problem = (
            _optimizer_problem(found.parts[name], part, other_settings=other_settings)
            if isinstance(part, CombinedOptimizer)
            else _values_problem(found.parts[name], part.state_dict())
        )
        if problem:
            raise UserError(f"{folder / PARTS}: {name} is not of this training: {problem}")
        if other_settings and isinstance(part, CombinedOptimizer):
            found.parts[name]["param_groups"] = part.state_dict()["param_groups"]
    return found


def _read_tensors(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
    if different := sorted(found.keys() ^ expected.keys()):
        problem = "unexpected" if different[0] in found else "missing"
        raise UserError(f"{path}: {different[0]} is {problem}")
    for name, tensor in expected.items():
        if problem := _tensor_problem(found[name], tensor):
            raise UserError(f"{path}: {name} {problem}")
    return found


def _read_parts(path: Path, expected: dict[str, Any]) -> dict[str, dict[str, Any]]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many types; what would run code is refused among them
        raise UserError(
            f"{path}: holds something else than numbers and tensors, which would run code when"
            " read, or is damaged; it was not written by a training of this project"
        ) from error
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise UserError(f"{path}: expected the state of {', '.join(expected)}")
    if not all(isinstance(state, dict) for state in found.values()):
        raise UserError(f"{path}: expected a mapping for each of {', '.join(expected)}")
    return found


def _read_history(
    folder: Path, record: Any, step: int
) -> tuple[list[dict[str, float]], HistoryFile]:
    where = f"{folder}: {folder.parent / HISTORY}"
    try:
        history, file = read_history_up_to(folder.parent, record)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not the history of a training ({error})") from error
    if len(history) != step:
        raise UserError(f"{where}: {len(history)} steps, expected {step} by the folder's name")
    for number, entry in enumerate(history, start=1):
        whole = isinstance(entry, dict) and "tokens" in entry
        whole = whole and ("train/loss" in entry or "train/skipped" in entry)
        if not (whole and entry.get("step") == number and all(map(_is_number, entry.values()))):
            raise UserError(f"{where}: line {number} is not the metrics of step {number}")
    return history, file


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _optimizer_problem(
    found: dict[str, Any], optimizer: CombinedOptimizer, *, other_settings: bool
) -> str | None:
    """Why ``found`` is no state of ``optimizer``; None if it is one."""
    ours = optimizer.state_dict()["param_groups"]
    theirs, state = found.get("param_groups"), found.get("state")
    if not isinstance(theirs, list) or not isinstance(state, dict):
        return "it is no state of an optimizer"
    fixed = _kind_of if other_settings else _fixed
    if [fixed(group) for group in theirs] != [fixed(group) for group in ours]:
        return "its groups of parameters or their settings are others"
    for group, described in zip(optimizer.param_groups, ours, strict=True):
        for parameter, number in zip(group["params"], described["params"], strict=True):
            expected, one = optimizer.state_layout(parameter), state.get(number)
            if not isinstance(one, dict) or not one:
                return "it lacks the state of a parameter"
            if one.keys() != expected.keys():
                return f"the state of a parameter is not {', '.join(sorted(expected))}"
            for name, value in one.items():
                if not isinstance(value, Tensor):
                    return f"{name} of a parameter is {value!r}"
                if problem := _tensor_problem(value, expected[name]):
                    return f"{name} of a parameter {problem}"
    return None


def _fixed(group: Any) -> Any:
    """What must be equal of a group: its settings, and the numbers of its parameters."""
    if not isinstance(group, dict):
        return None
    settings = {key: value for key, value in group.items() if key != "lr"}
    return settings if isinstance(group.get("lr"), float) else None


def _kind_of(group: Any) -> Any:
    """What must be equal of a group under other settings: which there are, and its parameters."""
    return (sorted(group), group.get("params")) if isinstance(group, dict) else None


def _tensor_problem(found: Tensor, expected: Tensor) -> str | None:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return (
            f"is {found.dtype} {list(found.shape)}, expected {expected.dtype}"
            f" {list(expected.shape)}"
        )
    if found.is_floating_point() and not found.isfinite().all():
        return "has values that are NaN or infinite"
    return None


def _values_problem(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Why plain values are not like others: another name, another type, not finite."""
    if found.keys() != expected.keys():
        return f"expected {', '.join(sorted(expected))}"
    for name, value in found.items():
        if type(value) is not type(expected[name]) or not _is_plain(value):
            return f"{name} is {value!r:.200}"
        if isinstance(value, dict) and any(isinstance(item, Tensor) for item in value.values()):
            if value.keys() != expected[name].keys():
                return f"{name} is of other tensors"
            for key, item in value.items():
                if problem := _tensor_problem(item, expected[name][key]):
                    return f"{name} of {key} {problem}"
    return None


def _is_plain(value: Any) -> bool:
    """Whether a value is made of finite numbers and tensors, and lists and mappings of such."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, int | float) and math.isfinite(value)
