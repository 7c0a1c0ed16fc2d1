"""The student that is exported: loaded once, and handed on with the folder that it came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.models.exportable import export_obstacles
from wrinklefree.models.folder import load_model
from wrinklefree.models.transforms import ModelFormat


@dataclass(frozen=True)
class Student:
    """An autoregressive model with ternary layers, which nobody changes: who must, copies it."""

    folder: Path
    """With its tokenizer and its plain configuration."""
    model: PreTrainedModel
    format: ModelFormat


def load_student(folder: Path) -> Student:
    """The model of ``folder``; a UserError says why it can't be loaded or exported."""
    model, model_format = load_model(folder, "ternary")
    if reasons := export_obstacles(model):
        raise UserError(
            f"{folder}: transformers cannot hold this model with ternary layers: "
            + "; ".join(reasons)
        )
    return Student(folder, model, model_format)
