"""``base``: the dense model that everything starts from."""

from __future__ import annotations

from pydantic import model_validator

from wrinklefree.downloads.settings import BaseSource
from wrinklefree.models.settings import ModelSettings
from wrinklefree.schema.section import (
    Section,
)
from wrinklefree.train.settings import TrainingSettings


class ScratchSettings(Section):
    """Shape and training of a dense model made here."""

    model: ModelSettings
    """Shape of the model."""
    training: TrainingSettings
    """How it is trained."""

    @model_validator(mode="after")
    def _order_needs_no_model(self) -> ScratchSettings:
        if self.training.data.order == "loss":
            raise ValueError(
                "training.data.order is loss, but a model from scratch has learnt nothing that rows"
                " could be ordered by; use length or shuffled"
            )
        return self


class BaseSettings(Section):
    """The dense model that everything starts from."""

    source: BaseSource
    """Where the model comes from."""
    scratch: ScratchSettings | None = None
    """Needed with ``source.kind: scratch``, and refused without it."""

    @model_validator(mode="after")
    def _scratch_if_from_scratch(self) -> BaseSettings:
        if (self.source.kind == "scratch") != (self.scratch is not None):
            raise ValueError(
                f"source.kind is {self.source.kind}, so scratch"
                f" {'is required' if self.scratch is None else 'must be left out (null)'}"
            )
        return self
