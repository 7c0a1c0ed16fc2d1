from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.distill.settings import DistillationWeights, RelationSettings
from wrinklefree.mixture.batch import Batch
from wrinklefree.train.distill_settings import DistillSettings
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.distillation import distillation
from wrinklefree.train.objectives.masked import MaskedTokens
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective, TrainStep

MASK = 39


def diffusion(weighting, complementary):
    return DiffusionSettings(
        block_size=4,
        mask_init="mean",
        token_shift="clean_boundary",
        loss_weighting=weighting,
        complementary_masks=complementary,
    )


def distill_settings():
    return DistillSettings.model_construct(
        weights=DistillationWeights(cross_entropy=1.0, logits=2.0, relations=30.0),
        temperature=5.0,
        temperature_squared=True,
        relations=RelationSettings(layer_fractions=[0.5], heads=4, temperature=1.0, causal=True),
    )


def build(kind, weighting, complementary, teacher):
    settings = diffusion(weighting, complementary)
    return {
        "causal": lambda: Objective(NextToken()),
        "masked": lambda: Objective(MaskedTokens(MASK, context=1, seed=3)),
        "distillation": lambda: distillation(NextToken(), distill_settings(), teacher),
        "diffusion": lambda: Objective(BlockDiffusion(settings, MASK, 3)),
        "diffusion distillation": lambda: distillation(
            BlockDiffusion(settings, MASK, 3), distill_settings(), teacher
        ),
    }[kind]()


def take(batch, chosen):
    return Batch(*(getattr(batch, field.name)[chosen] for field in fields(batch)))


def step(model, objective, batches):
    prepared = [objective.corruption.prepare(batch, 7) for batch in batches]
    denominator = sum(map(objective.corruption.denominator, prepared))
    model.zero_grad()
    train_step = TrainStep(model, objective)
    outputs = [objective.loss(train_step(micro), micro, denominator) for micro in prepared]
    for output in outputs:
        output.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    terms = {name: sum(output.terms[name] for output in outputs) for name in outputs[0].terms}
    rows = torch.cat([output.row_loss_B for output in outputs])
    return sum(output.loss for output in outputs), gradients, terms, rows


CASES = [(kind, "unit", False) for kind in ("causal", "masked", "distillation")] + [
    (kind, weighting, complementary)
    for kind in ("diffusion", "diffusion distillation")
    for weighting in ("unit", "elbo")
    for complementary in (False, True)
]


@pytest.mark.parametrize(("kind", "weighting", "complementary"), CASES)
def test_micro_batches_add_up_to_one_big_batch(tiny_model, pack, kind, weighting, complementary):
    objective = build(kind, weighting, complementary, tiny_model(9))
    model, batch = tiny_model(), pack([[13, 1], [2], [4, 5, 4], [3, 3]], 14)
    whole = step(model, objective, [batch])
    parts = step(model, objective, [take(batch, slice(0, 1)), take(batch, slice(1, 4))])
    torch.testing.assert_close(parts, whole)
