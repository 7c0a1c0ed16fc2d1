"""The dense model that teaches a student, as an input of a stage."""

from __future__ import annotations

from transformers import PreTrainedModel

from wrinklefree.distill.vocabulary import check_tokenizers
from wrinklefree.models.folder import load_model
from wrinklefree.tracking.stage import Stage


def load_teacher(stage: Stage) -> PreTrainedModel:
    """The dense model of the input ``teacher``; raises UserError where tokenizers differ."""
    check_tokenizers(stage.inputs["teacher"], stage.inputs["model"])
    return load_model(stage.inputs["teacher"], "dense")[0]
