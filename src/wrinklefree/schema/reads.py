"""Which part of ``params.yaml`` each stage reads: the contract that both engines are held to.

A stage is rerun when something that it reads changes, so a path listed here and not used costs
time, and a path used and not listed would be a stale result. Stages get nothing but these sections.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from wrinklefree.errors import UserError
from wrinklefree.schema.load import overlay

READS: dict[str, tuple[str, ...]] = {
    "fetch": ("sources.{instance}", "held_out"),
    "clean": ("cleaning", "sources"),
    "tokenizer": ("sources", "tokenizer", "base.source"),
    "tokenize": ("sources.{instance}", "tokenize"),
    "mixture": ("sources", "mixture"),
    "tasks": ("sources", "tasks"),
    "data_report": ("seed", "sources", "data_report"),
    "base": ("seed", "base"),
    "teachers": ("teachers",),
    "subln": ("seed", "subln"),
    "stage2": ("seed", "stage2"),
    "dlm": ("seed", "dlm"),
    "distill": ("seed", "distill.{instance}"),
    "evaluate": ("seed", "evaluate"),
    "export": ("export", "base.source"),
    "control": ("seed", "stage2", "distill.ar", "control"),
    "finetune": ("seed", "finetune"),
    "synthesize": ("seed", "sources", "synthesize"),
    "world_model": ("seed", "world_model"),
    "search": ("seed", "stage2", "search"),
    "regmix_run": (
        "seed",
        "regmix.threads",
        "regmix.draw",
        "regmix.model",
        "regmix.training",
        "regmix.measure",
    ),
    "regmix": ("seed", "regmix.runs", "regmix.draw", "regmix.fit"),
    "microanneal_run": (
        "seed",
        "microanneal.arms.{instance}",
        "microanneal.seeds",
        "microanneal.threads",
        "microanneal.training",
        "microanneal.measure",
    ),
    "microanneal": ("microanneal.verdict",),
    "architecture": ("seed", "architectures.shared", "architectures.each.{instance}"),
    "experiment": ("seed", "experiments.runs"),
    "experiments": ("experiments.names", "experiments.verdict"),
}

FORESEEN: dict[str, tuple[str, ...]] = {"base": ("subln", "export"), "subln": ("export",)}
"""Sections of later stages by which a stage refuses, before training, what would fail there.

They change no result: no engine reruns a stage for them, and no manifest has them.
"""

OptimizerName = Literal[
    "adamw", "muon", "muonclip", "normuon", "muon8bit", "apollo", "apollo_mini", "adamw8bit"
]
ClippingName = Literal["zclip", "adagc", "fixed", "none"]
AveragingName = Literal["none", "last", "ema"]
ALTERNATIVES: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(OptimizerName),
    "clipping": get_args(ClippingName),
    "averaging": get_args(AveragingName),
}
"""Settings with a block for each alternative, of which ``name`` chooses one (docs/settings.md)."""


WITHOUT_EFFECT = ("checkpoint_interval", "log_interval", "activation_checkpointing")
"""Settings of a training that leave its result as it is: a resumed run may have others."""
_ELSEWHERE = {"tokenize": ("processes",), "engine": ("executor", "workers", "slurm")}
"""The same of data stages, by the section that they are in."""


def narrow(parameters: dict[str, Any], stage: str, instance: str | None = None) -> dict[str, Any]:
    """The sections of ``parameters`` that ``stage`` may read, nested as in the file.

    Blocks of alternatives that are not chosen are left out: they have no effect. An architecture
    is handed over as :func:`with_whole_architectures` has it.

    Parameters
    ----------
    parameters : the whole of ``params.yaml``, or an already narrowed part of it.
    instance : the source, student, run, arm, experiment or architecture of a stage that has
        several.

    Raises
    ------
    UserError : a path is missing, or ``stage`` is no stage.
    """
    narrowed: dict[str, Any] = {}
    if stage == "architecture":
        parameters = with_whole_architectures(parameters)
    for path in reads(stage, instance):
        value: Any = parameters
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                raise UserError(f"settings of stage {stage}: {path} is missing")
            value = value[key]
        target = narrowed
        *parents, last = path.split(".")
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = _without_unchosen(value)
    return narrowed


def shaping(settings: dict[str, Any]) -> dict[str, Any]:
    """``settings`` without those that leave the result as it is: what an artifact is known by."""
    return {
        key: shaping(_without(value, _ELSEWHERE.get(key, ()))) if isinstance(value, dict) else value
        for key, value in settings.items()
        if not (key in WITHOUT_EFFECT and isinstance(value, int))
    }


def _without(settings: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in names}


def foreseen(parameters: dict[str, Any], stage: str) -> dict[str, Any]:
    """The sections of :data:`FORESEEN` that ``parameters`` have."""
    return {name: parameters[name] for name in FORESEEN.get(stage, ()) if name in parameters}


def with_whole_architectures(parameters: dict[str, Any]) -> dict[str, Any]:
    """``parameters`` in which every architecture has what all share, of which then nothing is left.

    Done again, this changes nothing.
    """
    if (section := parameters.get("architectures")) is None:
        return parameters
    shared, each = section.get("shared", {}), section.get("each", {})
    whole = {name: overlay(shared, own) for name, own in each.items()}
    return parameters | {"architectures": {"shared": {}, "each": whole}}


def _without_unchosen(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kept = {key: _without_unchosen(item) for key, item in value.items()}
    for key, names in ALTERNATIVES.items():
        block = kept.get(key)
        if isinstance(block, dict) and (chosen := block.get("name")) in names:
            # What is no block stays, for the stage to refuse.
            unchosen = set(names) - {chosen}
            kept[key] = {own: item for own, item in block.items() if own not in unchosen}
    return kept


def reads(stage: str, instance: str | None = None) -> list[str]:
    """Dotted paths of the settings that ``stage`` reads."""
    if stage not in READS:
        raise UserError(f"unknown stage {stage}; stages: {', '.join(READS)}")
    return [path.format(instance=instance) for path in READS[stage]]
