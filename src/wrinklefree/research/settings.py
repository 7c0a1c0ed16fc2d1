"""``control``, ``regmix``, ``microanneal``, ``experiments``: trainings that judge the pipeline."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wrinklefree.mixture.settings import DataSettings, Weights
from wrinklefree.models.settings import ModelSettings
from wrinklefree.research.registry import EXPERIMENTS
from wrinklefree.schema.section import (
    MOST_STEPS,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Precision,
    RowsAtOnce,
    Section,
    Workers,
)
from wrinklefree.train.settings import TrainingSettings

SMALLEST_CONCENTRATION = 0.1
"""Below, nearly every mixture that is drawn is a single domain."""
Concentration = Annotated[float, Field(ge=SMALLEST_CONCENTRATION, le=1e6)]
OVERALL = "overall"
TARGET = "target"
"""What counts, beside the domains in tables, plots and files: no domain may be called so."""
FEWEST_FITTED = 3
FEWEST_HELD_OUT = 3
"""Rank correlation of two mixtures is 1 or -1 whatever the regression says."""
HIGHEST_CONFIDENCE = 0.9999
"""Student's distribution is not known to describe such luck any further out."""
Confidence = Annotated[float, Field(ge=0.5, le=HIGHEST_CONFIDENCE)]


class MeasureSettings(Section):
    """Held-out loss of every domain after a training."""

    rows_per_domain: Annotated[int, Field(ge=2, le=10**9)]
    """Held-out rows scored per domain, at most. Intervals count their documents."""
    batch_size: RowsAtOnce = 8
    """Rows at a time, which bounds memory."""


class ControlSettings(Section):
    """The dense base, trained on as the students were, to measure what ternary weights cost."""

    measure: MeasureSettings
    """Held-out loss after the training."""
    confidence: Confidence = 0.95
    """Confidence of the intervals."""


class DrawSettings(Section):
    """Mixtures around the present one: floor + (what the floors leave) x Dirichlet.

    The Dirichlet's parameters are a concentration times the weights of ``mixture``; the
    concentration of each mixture is drawn log-uniformly between the two given.
    """

    concentration_min: Concentration = 2.0
    """Smallest concentration. A small one gives mixtures of one or two domains."""
    concentration_max: Concentration = 20.0
    """Largest concentration. A large one gives mixtures close to the present one."""
    floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    """Smallest weight of a domain whose weight in ``mixture`` is not 0."""

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if self.concentration_min > self.concentration_max:
            raise ValueError(
                f"concentration_min {self.concentration_min:g} is above concentration_max"
                f" {self.concentration_max:g}; swap them"
            )
        return self


class FitSettings(Section):
    """The regression from weights to losses, and the search for the best mixture."""

    held_out_runs: Annotated[int, Field(ge=FEWEST_HELD_OUT, le=10**6)] = 8
    """The last of the runs; the regression is judged on them and never fitted on them."""
    regression: Literal["linear", "log_linear", "boosted_trees"] = "log_linear"
    """``linear``: ridge on weights; ``log_linear``: ridge on their logarithms."""
    target: dict[Name, NonNegativeFloat] | None = None
    """Weights of the domains' losses, scaled to sum 1. Default: the weights of ``mixture``."""
    candidates: Annotated[int, Field(gt=0, le=10**7)] = 20_000
    """Number of mixtures whose loss is predicted."""
    best_candidates: Annotated[int, Field(gt=0, le=10**7)] = 100
    """The mixture that is proposed is the mean of this many of the best candidates."""
    bootstraps: Annotated[int, Field(ge=20, le=100_000)] = 200
    """Number of fits on runs drawn with replacement, for the uncertainty."""

    @model_validator(mode="after")
    def _something_to_choose(self) -> Self:
        if self.best_candidates > self.candidates:
            raise ValueError(
                f"best_candidates {self.best_candidates} is more than candidates {self.candidates}"
            )
        _check_target(self.target)
        return self


class RegmixSettings(Section):
    """Data mixture as regression (arXiv 2407.01492)."""

    runs: Annotated[list[NonNegativeInt], Field(min_length=FEWEST_FITTED + FEWEST_HELD_OUT)]
    """Numbers of the runs. A run's mixture follows from its number, so that more can be added."""
    threads: Workers
    """CPU threads of a run; an engine trains as many at once as there are cores for."""
    draw: DrawSettings
    """How the mixtures of the runs are drawn."""
    model: ModelSettings
    """Shape of the model that every run trains."""
    training: TrainingSettings
    """How it is trained."""
    measure: MeasureSettings
    """Held-out loss after each training."""
    fit: FitSettings
    """The regression, and the search for the best mixture."""

    @model_validator(mode="after")
    def _enough_runs(self) -> Self:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("runs has a number twice; every run has its own")
        fitted = len(self.runs) - self.fit.held_out_runs
        if fitted < FEWEST_FITTED:
            raise ValueError(
                f"{len(self.runs)} runs less fit.held_out_runs {self.fit.held_out_runs} leaves"
                f" {fitted} to fit on, expected {FEWEST_FITTED} or more; add runs"
            )
        return self

    @model_validator(mode="after")
    def _drawn_mixtures_only(self) -> Self:
        _check_shuffled(self.training)
        return self


class ArmSettings(Section):
    """One of the two mixtures that are compared."""

    weights: Weights | None = None
    """Weights of the domains. Default: ``mixture.weights``."""


class ArmsSettings(Section):
    """The two mixtures."""

    present: ArmSettings
    """The mixture that is in use."""
    candidate: ArmSettings
    """The mixture that may be better."""


class VerdictSettings(Section):
    """Whether the candidate is better than the present mixture."""

    target: dict[Name, NonNegativeFloat] | None = None
    """Weights of the domains' losses, scaled to sum 1. Default: the weights of ``mixture``."""
    confidence: Confidence = 0.95
    """Confidence of the intervals. The verdict is undecided where the interval contains 0."""

    @model_validator(mode="after")
    def _something_counts(self) -> Self:
        _check_target(self.target)
        return self


class MicroannealSettings(Section):
    """Two short anneals from the dense base, with two mixtures."""

    arms: ArmsSettings
    """The two mixtures that are compared."""
    seeds: Annotated[list[NonNegativeInt], Field(min_length=2)]
    """One anneal of each arm per seed of the data order; both arms have the same seeds."""
    threads: Workers
    """CPU threads of an arm; an engine trains both arms at once if there are cores for it."""
    training: TrainingSettings
    """``schedule`` anneals: no warmup to speak of, ``final_lr_fraction`` 0."""
    measure: MeasureSettings
    """Held-out loss after each anneal."""
    verdict: VerdictSettings
    """How it is decided which mixture is better."""

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds has a number twice, which would count the same anneal twice")
        return self

    @model_validator(mode="after")
    def _arms_mixtures_only(self) -> Self:
        _check_shuffled(self.training)
        return self


class ExperimentRunsSettings(Section):
    """What all trainings of all experiments have in common."""

    seeds: Annotated[list[NonNegativeInt], Field(min_length=2)]
    """Seeds of initial weights and data order. All variants are trained with the first one,
    finalists with all."""
    threads: Workers
    """CPU threads of an experiment; an engine runs as many at once as there are cores for."""
    model: ModelSettings
    """Shape of the model that is trained."""
    steps: Annotated[int, Field(ge=10, le=MOST_STEPS)]
    """Steps of a training. Variants with other batches take as many tokens, not as many steps."""
    base_steps: Annotated[int, Field(ge=10, le=MOST_STEPS)] | None = None
    """Steps of the dense model that ternary ones are made of and taught by. Default: ``steps``."""
    batch_size: RowsAtOnce
    """Rows per step."""
    precision: Precision = "fp32"
    """Data type that products are computed in, see ``stage2.precision``."""
    measure: MeasureSettings
    """Held-out loss before and after each training."""

    @model_validator(mode="after")
    def _distinct_seeds(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds has a number twice, which would count the same training twice")
        return self


class ExperimentVerdictSettings(Section):
    """How a variant is judged."""

    confidence: Confidence = 0.95
    """Confidence of the intervals. A verdict is undecided where the interval contains 0."""


class ExperimentsSettings(Section):
    """Small trainings in many ways, which answer what the seeds claim."""

    names: Annotated[list[Name], Field(min_length=1)]
    """Which experiments; they are described in ``research/registry.py``."""
    runs: ExperimentRunsSettings
    """What their trainings have in common."""
    verdict: ExperimentVerdictSettings
    """When a variant is called better."""

    @model_validator(mode="after")
    def _known_names(self) -> Self:
        if unknown := [name for name in self.names if name not in EXPERIMENTS]:
            raise ValueError(
                f"names has {unknown[0]}, but the experiments are {', '.join(EXPERIMENTS)}"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError("names has an experiment twice")
        return self


def _check_shuffled(training: TrainingSettings) -> None:
    if training.data != DataSettings():
        raise ValueError(
            "training.data is set, but these trainings compare mixtures: each reads one mixture in"
            " shuffled order from first to last; leave training.data out"
        )


def _check_target(target: dict[str, float] | None) -> None:
    if target is not None and not sum(target.values()):
        raise ValueError("every weight of target is 0; give a domain that counts a weight")
