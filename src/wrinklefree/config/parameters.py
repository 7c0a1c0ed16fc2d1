"""The whole of ``params.yaml`` and the rules that span its sections."""

from __future__ import annotations

import warnings

from pydantic import Field, model_validator

from wrinklefree.config.resources import ResourcesSettings
from wrinklefree.evaluate.settings import DataReportSettings, EvaluateSettings
from wrinklefree.export.settings import ExportSettings
from wrinklefree.mixture.settings import MixtureSettings
from wrinklefree.models.settings import PruneSettings, SublnSettings
from wrinklefree.models.teacher_settings import TeacherSettings
from wrinklefree.research.architecture_settings import (
    ArchitectureSettings,
    ArchitecturesSettings,
)
from wrinklefree.research.finetune_settings import FinetuneSettings
from wrinklefree.research.hyperparameter_settings import SearchSettings
from wrinklefree.research.settings import (
    OVERALL,
    TARGET,
    ArmsSettings,
    ControlSettings,
    ExperimentsSettings,
    MicroannealSettings,
    RegmixSettings,
)
from wrinklefree.research.synthesize_settings import SynthesizeSettings
from wrinklefree.research.world_model.settings import WorldModelSettings
from wrinklefree.schema.load import validate_section
from wrinklefree.schema.reads import READS, with_whole_architectures
from wrinklefree.schema.section import Name, Section, Seed
from wrinklefree.tasks.settings import TasksSettings
from wrinklefree.text.clean.settings import CleaningSettings
from wrinklefree.text.documents.settings import HeldOutSettings, Source
from wrinklefree.tokens.settings import TokenizerSettings, TokenizeSettings
from wrinklefree.train.base_settings import BaseSettings
from wrinklefree.train.distill_settings import BASE, DistillationSettings, DistillStudents
from wrinklefree.train.dlm_settings import DlmSettings
from wrinklefree.train.settings import TrainingSettings
from wrinklefree.train.stage2_settings import Stage2Settings

_OF_ARCHITECTURES = ArchitectureSettings.model_fields
_AROUND_ARCHITECTURES = {
    "architectures": {"shared": {}, "each": {}},
    "export": {"linear_class": "none"},
    "resources": {},
    # Its vocabulary is there already, whatever it is from.
    "tokenizer": {"kind": "bpe", "vocabulary_size": 512, "max_megabytes_per_source": 1},
}
"""Of a run that stands for an architecture, which exports nothing and trains no tokenizer."""


class Parameters(Section):
    """Every knob of the pipeline, a section per stage."""

    seed: Seed
    """What every stage's own seed is derived from."""
    held_out: HeldOutSettings
    """What is never trained on."""
    sources: dict[Name, Source] = Field(min_length=1)
    """Where documents come from, by a name of yours."""
    cleaning: CleaningSettings
    """What is removed before tokenization."""
    tokenizer: TokenizerSettings
    """How text becomes tokens."""
    tokenize: TokenizeSettings
    """How the work of tokenizing is divided."""
    mixture: MixtureSettings
    """How tokens of all domains become rows."""
    data_report: DataReportSettings
    """What the report on the data looks at."""
    base: BaseSettings
    """The dense model that everything starts from."""
    teachers: dict[Name, TeacherSettings]
    """Dense models that may teach beside the base, by a name of yours."""
    subln: SublnSettings
    """How the base is made ternary."""
    stage2: Stage2Settings
    """Continued pretraining with quantization in the loop."""
    dlm: DlmSettings
    """Conversion to a block-diffusion model."""
    distill: DistillStudents
    """Distillation of the dense teacher into both students."""
    tasks: TasksSettings
    """Benchmarks that the models answer."""
    evaluate: EvaluateSettings
    """The comparison of every model of the run."""
    export: ExportSettings
    """The student for other tools."""
    control: ControlSettings
    """Research: what ternary weights cost."""
    finetune: FinetuneSettings
    """Research: models trained to classify."""
    synthesize: SynthesizeSettings
    """Research: text that a teacher writes for the next run."""
    world_model: WorldModelSettings
    """Research: a model that predicts frames of videos."""
    search: SearchSettings
    """Research: which settings of stage 2 are best."""
    regmix: RegmixSettings
    """Research: which mixture is best."""
    microanneal: MicroannealSettings
    """Research: whether a mixture is better than another."""
    architectures: ArchitecturesSettings
    """Research: other architectures, made from scratch."""
    experiments: ExperimentsSettings
    """Research: which optimizer, clipping, quantizer and so on is best."""
    resources: ResourcesSettings = ResourcesSettings()
    """What a cluster is asked for."""

    @model_validator(mode="after")
    def _weights_match_domains(self) -> Parameters:
        domains = {source.domain for source in self.sources.values()}
        weighted = set(self.mixture.weights)
        if missing := sorted(weighted - domains):
            raise ValueError(
                f"mixture.weights names {', '.join(missing)}, but no source has that domain;"
                f" domains of the sources: {', '.join(sorted(domains))}"
            )
        if unused := sorted(domains - weighted):
            raise ValueError(
                f"mixture.weights lacks {', '.join(unused)}; give the domain a weight"
                " (0 leaves it out of training) or remove its source"
            )
        if taken := sorted(domains & {OVERALL, TARGET}):
            raise ValueError(
                f"a source has the domain {taken[0]}, which is what the research stages call the"
                " weighted sum of all domains; give it another name"
            )
        return self

    @model_validator(mode="after")
    def _teachers_are_known(self) -> Parameters:
        if BASE in self.teachers:
            raise ValueError(
                f"a teacher is called {BASE}, as the dense model of the run; rename it"
            )
        taught: dict[str, DistillationSettings] = {
            "stage2.distillation": self.stage2.distillation,
            "distill.ar": self.distill.ar,
            "distill.dlm": self.distill.dlm,
            "finetune.distillation": self.finetune.distillation,
        }
        for where, settings in taught.items():
            own = {BASE} if where.startswith("finetune") else {BASE, *self.teachers}
            if unknown := sorted(set(settings.teachers) - own):
                raise ValueError(
                    f"{where}.teachers names {unknown[0]}, expected of: {', '.join(sorted(own))}"
                )
        return self

    @model_validator(mode="after")
    def _all_domains_are_weighed(self) -> Parameters:
        trainings: dict[str, TrainingSettings] = {
            "stage2": self.stage2,
            "dlm": self.dlm,
            "distill.ar": self.distill.ar,
            "distill.dlm": self.distill.dlm,
        }
        if self.base.scratch:
            trainings["base.scratch.training"] = self.base.scratch.training
        weighings = {
            f"{path}.data.phases.{number}": phase.weights
            for path, training in trainings.items()
            for number, phase in enumerate(training.data.phases)
        }
        for arm in ArmsSettings.model_fields:
            if weights := getattr(self.microanneal.arms, arm).weights:
                weighings[f"microanneal.arms.{arm}"] = weights
        for path, weights in weighings.items():
            if wrong := sorted(set(self.mixture.weights) ^ set(weights)):
                raise ValueError(
                    f"{path}.weights and mixture.weights differ in {', '.join(wrong)}: name every"
                    " domain of the mixture, with weight 0 to leave it out, and no other"
                )
        return self

    @model_validator(mode="after")
    def _targets_are_domains(self) -> Parameters:
        domains = set(self.mixture.weights)
        for path, target in (
            ("regmix.fit.target", self.regmix.fit.target),
            ("microanneal.verdict.target", self.microanneal.verdict.target),
        ):
            if unknown := sorted(set(target or {}) - domains):
                raise ValueError(
                    f"{path} names {', '.join(unknown)}, but mixture.weights has only"
                    f" {', '.join(sorted(domains))}"
                )
        return self

    @model_validator(mode="after")
    def _floors_leave_something_to_draw(self) -> Parameters:
        floor = self.regmix.draw.floor
        weighted = sum(weight > 0 for weight in self.mixture.weights.values())
        if floor * weighted >= 1:
            raise ValueError(
                f"regmix.draw.floor {floor:g} of {weighted} domains leaves nothing to draw;"
                " lower it"
            )
        return self

    @model_validator(mode="after")
    def _cleaning_goes_together(self) -> Parameters:
        for name, source in self.sources.items():
            try:
                self.cleaning.steps_for(source.cleaning)
            except ValueError as error:
                raise ValueError(f"sources.{name}.cleaning, {error}") from None
        return self

    @model_validator(mode="after")
    def _references_are_looked_for(self) -> Parameters:
        steps = [self.cleaning.steps_for(source.cleaning) for source in self.sources.values()]
        if self.cleaning.references and not any(step.decontamination.enabled for step in steps):
            raise ValueError(
                "cleaning.references are looked for by decontamination, which is enabled for no"
                " source; enable it or remove them"
            )
        return self

    @model_validator(mode="after")
    def _quality_is_learnt_and_judged(self) -> Parameters:
        judged = False
        for name, source in self.sources.items():
            quality = self.cleaning.steps_for(source.cleaning).quality
            if unknown := sorted({*quality.good, *quality.bad} - set(self.sources)):
                raise ValueError(
                    f"cleaning.quality of source {name} learns from {unknown[0]}, which is no"
                    f" source; sources: {', '.join(sorted(self.sources))}"
                )
            judged |= quality.enabled and name not in quality.good
        general = self.cleaning.quality
        if (general.enabled or general.good or general.bad) and not judged:
            raise ValueError(
                "cleaning.quality judges no source: it is enabled for none but good ones; set"
                " cleaning.quality.enabled or sources.<name>.cleaning.quality.enabled to true, or"
                " remove it"
            )
        return self

    @model_validator(mode="after")
    def _layers_are_asked_for_what_they_can(self) -> Parameters:
        scratch, depths = self.base.scratch, self.subln.mixture_of_depths
        trainings = [self.stage2, self.distill.ar, *([scratch.training] if scratch else [])]
        heads = self.stage2.future_tokens.heads, self.distill.ar.future_tokens.heads
        either = {"dlm.enabled": self.dlm.enabled, "future_tokens": any(heads)}
        of_states = {
            **either,
            "compile": any(training.compile for training in trainings),
            "subln.prune": self.subln.prune != PruneSettings(),
            "subln.mixture_of_depths": depths,
        }
        of_depths = {
            **either,
            "export.linear_class": self.export.linear_class != "none",
            "base.scratch.model.experts": scratch and scratch.model.experts,
        }
        for path, given, wanted in (
            ("base.scratch.model.state_space", scratch and scratch.model.state_space, of_states),
            ("subln.mixture_of_depths", depths, of_depths),
        ):
            if given and (refused := [name for name, wish in wanted.items() if wish]):
                raise ValueError(
                    f"{path} can't be together with {', '.join(refused)}: set dlm.enabled and"
                    " compile to false, export.linear_class to none, and leave the others out"
                )
        return self

    @model_validator(mode="after")
    def _blocks_fit_rows(self) -> Parameters:
        block, row = self.dlm.diffusion.block_size, self.mixture.sequence_length
        if block > row:
            raise ValueError(
                f"dlm.diffusion.block_size is {block}, but a row has only"
                f" mixture.sequence_length {row} tokens; lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _export_holds_all_scales(self) -> Parameters:
        granularity, linear_class = self.subln.quantizer.granularity, self.export.linear_class
        if granularity != "tensor" and linear_class != "none":
            raise ValueError(
                f"subln.quantizer.granularity is {granularity}, but the layer {linear_class} of"
                " transformers has one scale per matrix, so that the stage export could not write"
                " the model; use tensor, or export.linear_class: none to go without an export"
            )
        return self

    @model_validator(mode="after")
    def _a_licence_is_of_what_was_brought(self) -> Parameters:
        if self.export.base_licence and self.base.source.kind == "scratch":
            raise ValueError(
                f"export.base_licence is {self.export.base_licence}, but base.source.kind is"
                " scratch: no base is brought; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _reconstruction_is_not_undone(self) -> Parameters:
        steps = self.stage2.lambda_warmup.warmup_steps
        if self.subln.reconstruct.kind != "none" and steps:
            raise ValueError(
                f"stage2.lambda_warmup.warmup_steps is {steps}, but subln.reconstruct trains layers"
                " that are ternary: a strength from 0 on would undo it; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _groups_fit_the_model(self) -> Parameters:
        quantizer = self.subln.quantizer
        if self.base.scratch and quantizer.granularity == "group":
            model, size = self.base.scratch.model, quantizer.group_size
            features = ("base.scratch.model.intermediate_size", model.intermediate_size)
            if remaining := self.subln.prune.intermediate_size:
                features = ("subln.prune.intermediate_size", remaining)
            for name, count in (("base.scratch.model.hidden_size", model.hidden_size), features):
                if count % size:
                    raise ValueError(
                        f"{name} is {count}, no multiple of subln.quantizer.group_size {size};"
                        " change one of them"
                    )
        return self

    @model_validator(mode="after")
    def _no_more_remains_than_there_is(self) -> Parameters:
        if self.base.scratch:
            model, whose = self.base.scratch.model, "base.scratch.model"
            if said := self.subln.prune.beyond(whose, model.layers, model.intermediate_size):
                raise ValueError(said)
        return self

    @model_validator(mode="after")
    def _a_shape_is_of_what_was_brought(self) -> Parameters:
        if self.base.scratch and self.resources.model:
            raise ValueError(
                "resources.model is the shape of a base that is brought, but base.scratch has that"
                " of the model that is trained here; leave out resources.model"
            )
        return self

    @model_validator(mode="after")
    def _architectures_are_runs(self) -> Parameters:
        given = self.model_dump(exclude_unset=True)
        for name, own in with_whole_architectures(given)["architectures"]["each"].items():
            if name == "all" or name in READS or name.split("_")[0] in READS:
                raise ValueError(f"architectures.each.{name} is called as a stage is; rename it")
            run = {key: value for key, value in given.items() if key not in _OF_ARCHITECTURES}
            run |= _AROUND_ARCHITECTURES | ArchitectureSettings(**own).of_run()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its stage says them
                validate_section(Parameters, run, f"architectures.each.{name}, laid over shared")
        return self

    @model_validator(mode="after")
    def _tokenizer_matches_base(self) -> Parameters:
        kind = self.base.source.kind
        scratch = kind == "scratch"
        if scratch and self.tokenizer.kind == "base":
            raise ValueError(
                "tokenizer.kind is base, but base.source.kind is scratch, which has no tokenizer;"
                " use tokenizer.kind: bpe"
            )
        if not scratch and self.tokenizer.kind == "bpe":
            raise ValueError(
                f"tokenizer.kind is bpe, but base.source.kind is {kind}: a pretrained model's"
                " embeddings fit its own vocabulary only; use tokenizer.kind: base"
            )
        return self
