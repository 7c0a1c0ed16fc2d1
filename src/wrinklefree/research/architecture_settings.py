"""``architectures``: other models than the run's, which go its way on its text."""

from __future__ import annotations

from typing import Any

from wrinklefree.schema.section import Name, Section


class ArchitectureSettings(Section):
    """Settings of the stages that a model goes through, as a run has them."""

    base: dict[str, Any] = {}
    """As ``base.scratch``: model and training."""
    subln: dict[str, Any] = {}
    """As ``subln``."""
    stage2: dict[str, Any] = {}
    """As ``stage2``."""
    dlm: dict[str, Any] = {}
    """As ``dlm``."""
    distill: dict[str, Any] = {}
    """As ``distill``."""
    evaluate: dict[str, Any] = {}
    """As ``evaluate``."""

    def of_run(self) -> dict[str, Any]:
        """The sections of a run that has this model."""
        given = self.model_dump(exclude_unset=True)
        return given | {"base": {"source": {"kind": "scratch"}, "scratch": self.base}}


class ArchitecturesSettings(Section):
    """Models made from scratch on this run's text and with its tokenizer, dense and ternary."""

    shared: ArchitectureSettings
    """What they have in common."""
    each: dict[Name, ArchitectureSettings]
    """What is different for each model, by its name, which is also a target. Mappings are merged,
    other values replaced."""
