"""The experiments that answer the seeds, as data. Imports no torch.

Every variant of an experiment is trained on as many tokens, from the same initial weights, on the
same rows in the same order, unless one of these is what it is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Measure = Literal[
    "loss",
    "start_loss",
    "step_variance",
    "within",
    "between",
    "spikes",
    "unmoved",
    "operations",
    "tokens_needed",
    "operations_needed",
]
MEASURES: dict[Measure, str] = {
    "loss": "held-out loss after training",
    "start_loss": "held-out loss before",
    "step_variance": "variance of the loss from step to step",
    "within": "variance of row losses within domains",
    "between": "variance of row losses between domains",
    "spikes": "steps whose gradient norm was above 3 times its median of late",
    "unmoved": "share of the weights that a step leaves exactly as they were",
    "operations": "million floating-point operations of a token, those of the optimizer too",
    "tokens_needed": "tokens until the reference's last loss is reached, as a share of its tokens",
    "operations_needed": "the same in operations, which no machine changes and time follows",
}
"""What is measured of a run, and what tables call it."""


@dataclass(frozen=True)
class Variant:
    """One way to train, by what is different from the other ways."""

    training: Mapping[str, Any] = field(default_factory=dict)
    """Laid over ``Experiment.training``."""
    subln: Literal["calibrated", "calibrated_scalar", "ones", "none"] = "calibrated"
    """Gain of SubLN, or ``none``. Of ternary models, as are the next five."""
    reconstruct: Mapping[str, Any] | None = None
    """How layers are trained one by one before, on rows beside those of the training."""
    quantizer: Mapping[str, Any] = field(default_factory=dict)
    """Scale and granularity."""
    distillation: Mapping[str, Any] | None = None
    """The terms of a loss with the dense model as teacher; without them the text alone teaches."""
    lambda_share: float = 0.1
    """Share of the steps after which quantization has its full strength."""
    lambda_schedule: str = "linear"
    shares: Mapping[str, float] = field(default_factory=dict)
    """Weights of domains; the other domains share what is left as they do in the mixture."""
    shuffle_buffer_size: int | None = None
    """In place of the mixture's own."""
    spike: bool = False
    """The gradient of one step is 100 times as large."""
    bfloat16_parameters: bool = False
    """Parameters are rounded to bfloat16 after every step."""
    family: str | None = None
    """Of several variants of a family the best is taken: a sweep. Without: one of its own."""
    against: str | None = None
    """The family that it is compared with; without it the experiment's reference."""


@dataclass(frozen=True)
class Claim:
    """A relative change of a measure that a document promises."""

    family: str
    measure: Measure
    change: float
    """-0.5: half of the reference's."""
    source: str


@dataclass(frozen=True)
class Experiment:
    """A question, and the trainings that answer it."""

    question: str
    start: Literal["dense", "ternary"]
    """``dense``: from scratch. ``ternary``: from a dense model that was trained as long before."""
    reference: str
    """The family that the others are compared with."""
    variants: Mapping[str, Variant]
    training: Mapping[str, Any] = field(default_factory=dict)
    """Laid over the settings that all experiments share."""
    claims: tuple[Claim, ...] = ()
    shown: tuple[Measure, ...] = ()
    """Measures in the table beside the loss."""
    every_seed: bool = False
    """All variants are trained with all seeds: each row of an ablation counts, not the best one."""

    def family_of(self, variant: str) -> str:
        """What a variant is called once the best of its family is chosen."""
        return self.variants[variant].family or variant

    def opponent_of(self, variant: str) -> str:
        """The family that a variant is compared with."""
        return self.variants[variant].against or self.reference


def _optimizer(name: str, **block: Any) -> dict[str, Any]:
    return {"optimizer": {"name": name, name: {**block, "allow_unusual_lr": True}}}


def _muon(name: str, rate: float, **block: Any) -> dict[str, Any]:
    return _optimizer(name, lr=rate, adamw_lr=rate, weight_decay=0.1, **block)


def _schedule(kind: str, final: float = 0.1) -> dict[str, Any]:
    return {"schedule": {"kind": kind, "final_lr_fraction": final}}


SHARED_TRAINING = _muon("muon", 0.003)
"""What experiments train with where they are not about it."""


def _seeds() -> Experiment:
    return Experiment(
        question="What makes the loss of ternary training less noisy? (seeds/000, 001, 004)",
        start="ternary",
        reference="adamw_3e-4",
        training=_optimizer("adamw", lr=3e-4),
        variants={
            "adamw_3e-4": Variant(),
            "adamw_1e-4": Variant(_optimizer("adamw", lr=1e-4)),
            "muon": Variant(SHARED_TRAINING),
            "muonclip": Variant(_muon("muonclip", 0.003)),
            "batch_x4": Variant({"gradient_accumulation_steps": 4}),
            "buffer": Variant(shuffle_buffer_size=100),
            "buffer_x2": Variant(shuffle_buffer_size=200, against="buffer"),
            "code_15": Variant(shares={"code": 0.15}),
            "code_10": Variant(shares={"code": 0.10}, against="code_15"),
            "batch_1x16": Variant({"batch_size": 1, "gradient_accumulation_steps": 16}),
            "batch_4x4": Variant(
                {"batch_size": 4, "gradient_accumulation_steps": 4}, against="batch_1x16"
            ),
            "linear": Variant(_schedule("linear")),
            "influence": Variant({"data": {"influence": {"enabled": True, "interval": 20}}}),
        },
        claims=(
            Claim("muonclip", "step_variance", -0.5, "seeds/000"),
            Claim("adamw_1e-4", "step_variance", -0.3, "seeds/000"),
            Claim("batch_x4", "step_variance", -0.2, "seeds/000"),
        ),
        shown=("step_variance", "within", "between", "spikes"),
    )


def _clipping() -> Experiment:
    ways = {name: {"clipping": {"name": name}} for name in ("none", "zclip", "adagc", "fixed")}
    calm = {name: Variant(way) for name, way in ways.items()}
    spiked = {"none_spike": Variant(ways["none"], spike=True)}
    for name in ("zclip", "adagc", "fixed"):
        spiked[f"{name}_spike"] = Variant(ways[name], spike=True, against="none_spike")
    return Experiment(
        question="Which clipping of gradients helps, with a planted spike (x 100) and without?",
        start="ternary",
        reference="none",
        variants=calm | spiked,
        shown=("step_variance", "spikes"),
    )


def _strength() -> Experiment:
    return Experiment(
        question="How should quantization set in? (seeds/001, 003)",
        start="ternary",
        reference="none",
        variants={
            "none": Variant(lambda_share=0.0),
            "linear": Variant(),
            "cosine": Variant(lambda_schedule="cosine"),
            **{
                f"hard_{percent}_percent": Variant(
                    lambda_share=percent / 100, lambda_schedule="hard"
                )
                for percent in (10, 20, 40)
            },
        },
        shown=("start_loss", "step_variance", "spikes"),
    )


def _precision() -> Experiment:
    adamw = {rate: _optimizer("adamw", lr=rate) for rate in (3e-4, 3e-3)}
    return Experiment(
        question="What do bfloat16 parameters lose? (seeds/002)",
        start="dense",
        reference="fp32",
        variants={
            "fp32": Variant(adamw[3e-3]),
            "bf16": Variant(adamw[3e-3], bfloat16_parameters=True),
            "fp32_3e-4": Variant(adamw[3e-4]),
            "bf16_3e-4": Variant(adamw[3e-4], bfloat16_parameters=True, against="fp32_3e-4"),
            "muon": Variant(),
            "bf16_muon": Variant(bfloat16_parameters=True, against="muon"),
        },
        shown=("unmoved",),
    )


def _quantization() -> Experiment:
    scales = [
        ("absmean", "row"),
        ("least_squares", "tensor"),
        ("least_squares", "head"),
        ("least_squares", "row"),
        ("least_squares", "group"),
        ("learned", "tensor"),
        ("learned", "row"),
    ]
    return Experiment(
        question="Which scale, granularity and SubLN? What leads at the start, and at the end?",
        start="ternary",
        reference="absmean_tensor",
        variants={
            "absmean_tensor": Variant(),
            **{
                f"{scale}_{part}": Variant(
                    quantizer={"scale": scale, "granularity": part, "group_size": 64}
                )
                for scale, part in scales
            },
            "subln_ones": Variant(subln="ones"),
            "no_subln": Variant(subln="none"),
        },
        shown=("start_loss",),
    )


def _ingredients() -> Experiment:
    terms = {"logits", "relations", "hidden"}

    def taught(*without: str, ratio: float = 0.1, **settings: Any) -> dict[str, Any]:
        weights = dict.fromkeys(("cross_entropy", "logits"), 1.0)
        ratios = {name: ratio for name in ("relations", "hidden") if name not in without}
        return {
            "weights": weights | dict.fromkeys(without, 0.0) | dict.fromkeys(ratios, 0.0),
            "relations": {"heads": 4, "causal": True},
            "gradient_ratios": ratios,
            **settings,
        }

    best: dict[str, Any] = {"quantizer": {"scale": "least_squares"}}
    by_row: dict[str, Any] = {"quantizer": {"scale": "least_squares", "granularity": "row"}}
    layers: dict[str, Any] = best | {
        "reconstruct": {"kind": "layers", "rows": 128, "epochs": 1, "lr": 0.008}
    }
    own = {
        "text": Variant(**best),
        "text_absmean": Variant(),
        "text_row": Variant(**by_row),
        "text_layers": Variant(**layers),
        "text_ones": Variant(**best, subln="ones"),
        "text_no_subln": Variant(**best, subln="none"),
        "kl_alone": Variant(
            **best, distillation={"weights": {"cross_entropy": 0.0, "relations": 0.0}}
        ),
        **{
            f"text_{term}": Variant(**best, distillation=taught(*terms - {term}))
            for term in sorted(terms)
        },
        **{
            f"text_relations_{name}": Variant(
                **best, distillation=taught("hidden", "logits", ratio=ratio)
            )
            for name, ratio in (("weak", 0.03), ("strong", 0.3))
        },
    }
    left_out = {
        "all": Variant(**best, distillation=taught()),
        "all_absmean": Variant(distillation=taught()),
        "all_row": Variant(**by_row, distillation=taught()),
        "all_layers": Variant(**layers, distillation=taught()),
        "all_ones": Variant(**best, subln="ones", distillation=taught()),
        "all_no_subln": Variant(**best, subln="none", distillation=taught()),
        **{
            f"all_no_{term}": Variant(**best, distillation=taught(term))
            for term in sorted({"cross_entropy", *terms})
        },
        **{
            f"all_{direction}": Variant(**best, distillation=taught(direction=direction))
            for direction in ("reverse", "confidence")
        },
    }
    return Experiment(
        question="What is each ingredient worth, alone and when it is left out?",
        start="ternary",
        reference="text",
        variants=own
        | {
            name: replace(variant, against=None if name == "all" else "all")
            for name, variant in left_out.items()
        },
        shown=("start_loss",),
        every_seed=True,
    )


def _optimizers() -> Experiment:
    decay, beside = {"weight_decay": 0.1}, {"weight_decay": 0.1, "adamw_lr": 3e-3}
    blocks: dict[str, dict[str, Any]] = {
        "adamw": decay,
        "adamw8bit": decay,
        "apollo": {**beside, "rank": 32},
        "apollo_mini": beside,
    }
    variants = {
        f"{name}_{rate}": Variant(_optimizer(name, lr=float(rate), **block), family=name)
        for name, block in blocks.items()
        for rate in (("1e-3", "3e-3", "1e-2") if "apollo" in name else ("3e-3", "1e-2", "3e-2"))
    }
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        **{name: (name, {}) for name in ("muon", "muonclip", "normuon", "muon8bit")},
        "muon_polar_express": ("muon", {"coefficients": "polar_express"}),
        "muon_bfloat16": ("muon", {"compute": "bfloat16"}),
    }
    for family, (name, block) in kinds.items():
        for rate in ("3e-3", "1e-2", "3e-2"):
            variant = _muon(name, float(rate), **block)
            variants[f"{family}_{rate}"] = Variant(variant, family=family)
    return Experiment(
        question="Which optimizer, each at its best rate of a sweep? (seeds/003)",
        start="dense",
        reference="adamw",
        variants=variants,
        claims=(Claim("muon", "tokens_needed", -0.48, "seeds/003"),),
        shown=("operations", "tokens_needed", "operations_needed", "step_variance"),
    )


def _curriculum() -> Experiment:
    averaged = {"averaging": {"name": "last"}}
    decays = {
        "cosine": _schedule("cosine"),
        "moderate": _schedule("cosine", 0.5),
        "wsd": _schedule("wsd"),
        "constant": _schedule("constant"),
        "constant_mean": _schedule("constant") | averaged,
        "constant_ema": _schedule("constant") | {"averaging": {"name": "ema"}},
        "moderate_mean": _schedule("cosine", 0.5) | averaged,
    }
    easy_first = {"data": {"order": "length"}}
    variants = {f"shuffled_{name}": Variant(decay) for name, decay in decays.items()}
    for name, decay in decays.items():
        # The claim is of both together against an ordinary training.
        against = None if name == "moderate_mean" else f"shuffled_{name}"
        variants[f"easy_{name}"] = Variant({**decay, **easy_first}, against=against)
    return Experiment(
        question="Does easy text first help, and does the decay of the rate spoil it? (seeds/003)",
        start="dense",
        reference="shuffled_cosine",
        variants=variants,
        claims=(Claim("easy_moderate_mean", "loss", -0.0164, "seeds/003"),),
        shown=("step_variance",),
    )


EXPERIMENTS: dict[str, Experiment] = {
    "seeds": _seeds(),
    "clipping": _clipping(),
    "strength": _strength(),
    "precision": _precision(),
    "quantization": _quantization(),
    "ingredients": _ingredients(),
    "optimizers": _optimizers(),
    "curriculum": _curriculum(),
}
