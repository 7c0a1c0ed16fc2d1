"""``cleaning``: what is removed between fetching and tokenization, and what carries it out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from wrinklefree.schema.section import Name, Section, Workers
from wrinklefree.text.documents.settings import CleaningSteps, Source

_MEANINGLESS_FOR_REFERENCES = ("cleaning", "held_out_pattern", "held_out_levels", "max_tokens")


class LocalEngine(Section):
    """One process that streams the documents."""

    kind: Literal["local"]


class SlurmSettings(Section):
    """Where and with what datatrove's tasks run on a Slurm cluster."""

    partition: str
    """Where the tasks run."""
    time: Annotated[str, Field(pattern=r"^([0-9]{1,4}-)?[0-9]{1,6}(:[0-9]{2}){0,2}$")]
    """Time limit of a task, in the form that sbatch takes."""
    cpus_per_task: Workers = 1
    """CPUs of each task."""
    memory_gb_per_cpu: Annotated[int, Field(gt=0, le=10_000)] = 4
    """Main memory of each CPU, in GB."""
    quality_of_service: str | None = None
    """``--qos`` of sbatch."""
    environment_command: str | None = None
    """A shell command that activates the environment of this project on a node."""
    sbatch: dict[str, str] = {}
    """Further options of sbatch, by long name: ``{account: text}``."""


class DatatroveEngine(Section):
    """The same steps as datatrove pipelines, for corpora beyond one machine."""

    kind: Literal["datatrove"]
    executor: Literal["local", "slurm"] = "local"
    """Where the tasks run: on this machine or on a cluster."""
    tasks: Annotated[int, Field(gt=0, le=100_000)] = 4
    """Number of parts that the source, and the hashes, are divided into."""
    workers: Workers = 2
    """Number of tasks that run at the same time."""
    slurm: SlurmSettings | None = None
    """Needed with ``executor: slurm``, and refused without it."""

    @model_validator(mode="after")
    def _slurm_settings_belong_to_slurm(self) -> DatatroveEngine:
        if self.executor == "slurm" and self.slurm is None:
            raise ValueError("executor is slurm, so slurm must have at least partition and time")
        if self.executor == "local" and self.slurm is not None:
            raise ValueError("slurm has a meaning with executor: slurm only; remove it")
        return self


class CleaningSettings(CleaningSteps):
    """The steps for all sources and what carries them out.

    ``sources.<name>.cleaning`` is laid over the steps for one source.
    """

    references: dict[Name, Source] = {}
    """Evaluation sets beside the held-out splits: their text is looked for, never trained on."""
    engine: Annotated[LocalEngine | DatatroveEngine, Field(discriminator="kind")]
    """What carries the steps out."""

    def steps_for(self, own: CleaningSteps | None) -> CleaningSteps:
        """The steps for a source that has ``own`` settings beside those for all.

        Raises ValueError where the two don't go together, or not with the engine.
        """
        general = self.model_dump(include=set(CleaningSteps.model_fields), exclude_unset=True)
        laid_over = _overlay(general, own.model_dump(exclude_unset=True) if own else {})
        try:
            steps = CleaningSteps.model_validate(laid_over)
        except ValidationError as error:
            reasons = "; ".join(problem["msg"] for problem in error.errors())
            raise ValueError(f"laid over the section cleaning: {reasons}") from None
        if steps.near_duplicates.enabled and self.engine.kind != "datatrove":
            raise ValueError(
                "near_duplicates.enabled is true, which needs cleaning.engine.kind: datatrove, for"
                " its MinHash"
            )
        if steps.quality.enabled and not (steps.quality.good and steps.quality.bad):
            raise ValueError(
                "quality.enabled is true, so quality.good and quality.bad must each name a source"
                " of the text to learn from"
            )
        return steps

    @model_validator(mode="after")
    def _steps_go_together(self) -> CleaningSettings:
        self.steps_for(None)
        return self

    @model_validator(mode="after")
    def _references_are_read_whole(self) -> CleaningSettings:
        for name, source in self.references.items():
            for field in _MEANINGLESS_FOR_REFERENCES:
                if field in source.model_fields_set:
                    raise ValueError(
                        f"references.{name}.{field} has no meaning: a reference is looked for and"
                        " not trained on; remove it"
                    )
        return self


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlay(merged[key], value) if nested else value
    return merged
