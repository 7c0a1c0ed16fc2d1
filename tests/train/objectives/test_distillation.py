from __future__ import annotations

import math

import pytest
import torch
from asking import evaluate as ask
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.distill.hidden import hidden_distance
from wrinklefree.distill.relations import relation_vectors, relations_divergence
from wrinklefree.distill.settings import DistillationWeights, HiddenSettings, RelationSettings
from wrinklefree.errors import UserError
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.forward import next_token_logits
from wrinklefree.models.projections import captured_projections
from wrinklefree.train.distill_settings import DistillSettings
from wrinklefree.train.gradient_ratio_settings import GradientRatioSettings
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.distillation import _widened, distillation
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective, TrainStep

MASK = 39
WEIGHTS = {"cross_entropy": 1.0, "logits": 2.0, "relations": 30.0, "hidden": 0.7}
RELATIONS = {"layer_fractions": [0.0], "heads": 4, "temperature": 1.0, "causal": True}
HIDDEN = {"layer_fractions": [0.0, 1.0], "distance": "normalized_mse"}
TERMS = ("cross_entropy", "logits", "relations", "hidden")


def settings_with(weights=None, relations=None, hidden=None, **changes):
    """Only what the objectives read; the rest of a training section is the loop's."""
    values = {
        "temperature": 5.0,
        "temperature_squared": False,
        "direction": "forward",
        **changes,
    }
    return DistillSettings.model_construct(
        weights=DistillationWeights.model_construct(**{**WEIGHTS, **(weights or {})}),
        relations=RelationSettings(**{**RELATIONS, **(relations or {})}),
        hidden=HiddenSettings(**{**HIDDEN, **(hidden or {})}),
        gradient_ratios=GradientRatioSettings(),
        **values,
    )


def diffusion_with(**changes):
    default = {
        "block_size": 4,
        "mask_init": "mean",
        "token_shift": "clean_boundary",
        "loss_weighting": "unit",
        "complementary_masks": True,
    }
    return DiffusionSettings(**{**default, **changes})


def evaluate(objective, model, batch):
    return ask(objective, model, batch)[1]


def autoregressive(settings, teacher):
    return distillation(NextToken(), settings, teacher)


def of_diffusion(settings, diffusion, teacher, mask=MASK):
    return distillation(BlockDiffusion(diffusion, mask, 3), settings, teacher)


@pytest.fixture
def batch(pack):
    return pack([[9, 1, 6], [5, 8]], 17)


STUDENTS = {
    "ar": autoregressive,
    "diffusion": lambda settings, teacher: of_diffusion(settings, diffusion_with(), teacher),
}
each_student = pytest.mark.parametrize("student", STUDENTS)


def full_logits(model, batch):
    mask = causal_document_mask(batch.document_ids_BT)
    return next_token_logits(model, batch.tokens_BT, batch.positions_BT, mask)


def slow_divergence(teacher_V, student_V, temperature):
    p, q = (torch.softmax(x / temperature, 0).tolist() for x in (teacher_V, student_V))
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@torch.no_grad()
def test_terms_of_the_autoregressive_student_follow_their_definitions(tiny_model, batch):
    teacher, model = tiny_model(1), tiny_model(2)
    terms = evaluate(autoregressive(settings_with(), teacher), model, batch).terms
    with captured_projections(teacher, [0]) as of_teacher:
        teacher_logits = full_logits(teacher, batch)
    with captured_projections(model, [0]) as of_student:
        student_logits = full_logits(model, batch)
    relations = relations_divergence(
        *(relation_vectors(found[0], 4) for found in (of_teacher, of_student)),
        batch.document_ids_BT,
        causal=True,
        temperature=1.0,
    )
    asked = (batch.positions_BT > 0).nonzero().tolist()
    divergences = [
        slow_divergence(teacher_logits[row, at - 1], student_logits[row, at - 1], 5.0)
        for row, at in asked
    ]
    assert terms["distill/logits"].item() == pytest.approx(sum(divergences) / len(asked))
    mean = sum(relations[row, at].item() for row, at in asked) / len(asked)
    assert terms["distill/relations"].item() == pytest.approx(mean)
    plain = evaluate(Objective(NextToken()), model, batch)
    torch.testing.assert_close(terms["distill/cross_entropy"], plain.loss)


def test_of_several_teachers_each_adds_its_weight_to_every_term(tiny_model, batch):
    first, second, model = tiny_model(1), tiny_model(2), tiny_model(3)
    weights = {"logits": 1.0, "relations": 0.5, "hidden": 0.25, "cross_entropy": 0.0}

    def gradients(teachers, *models):
        settings = settings_with(weights=weights, teachers=teachers)
        output = evaluate(distillation(NextToken(), settings, *models), model, batch)
        return torch.autograd.grad(output.loss, list(model.parameters())), output.terms

    alone = [gradients({"base": 1.0}, teacher) for teacher in (first, second)]
    found, terms = gradients({"base": 2.0, "other": 0.5}, first, second)
    for one, other, both in zip(alone[0][0], alone[1][0], found, strict=True):
        torch.testing.assert_close(both, 2 * one + 0.5 * other)
    for name in ("distill/logits", "distill/relations", "distill/hidden"):
        torch.testing.assert_close(terms[name], 2 * alone[0][1][name] + 0.5 * alone[1][1][name])
        assert alone[0][1][name] != alone[1][1][name]


@torch.no_grad()
def test_hidden_states_are_those_that_leave_the_layers(tiny_model, batch):
    teacher, model = tiny_model(1), tiny_model(2)
    mask = causal_document_mask(batch.document_ids_BT).of(model)
    inputs = {"input_ids": batch.tokens_BT, "position_ids": batch.positions_BT}
    every = [
        one.get_decoder()(**inputs, attention_mask=mask, output_hidden_states=True).hidden_states
        for one in (teacher, model)
    ]
    first = hidden_distance(every[0][1], every[1][1], "normalized_mse")
    settings = settings_with(hidden={"layer_fractions": [0.0]})
    terms = evaluate(autoregressive(settings, teacher), model, batch).terms
    asked = batch.positions_BT > 0
    torch.testing.assert_close(terms["distill/hidden"], first[asked].mean())
    # Of several layers, the mean; the diffusion student's are those of its clean half.
    both = settings_with(hidden={"layer_fractions": [0.0, 0.0]})
    assert evaluate(autoregressive(both, teacher), model, batch).terms["distill/hidden"] == (
        pytest.approx(terms["distill/hidden"].item())
    )
    student = of_diffusion(settings, diffusion_with(block_size=1), teacher)
    ours = evaluate(student, model, batch).terms["distill/hidden"]
    torch.testing.assert_close(ours, terms["distill/hidden"])


def of_another_width():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=48,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
        )
    )


def test_a_map_between_hidden_states_needs_tokens(tiny_model, batch):
    with pytest.raises(UserError, match="the teacher have 48 features and those of the student"):
        evaluate(autoregressive(settings_with(), of_another_width()), tiny_model(2), batch)


@each_student
def test_hidden_states_of_another_width_are_compared_through_the_best_map(
    tiny_model, pack, student
):
    weights = {"cross_entropy": 0.0, "logits": 0.0, "relations": 0.0, "hidden": 1.0}
    batch, model = pack([[60], [60], [60]], 60), tiny_model(2)
    objective = STUDENTS[student](settings_with(weights=weights), of_another_width())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = evaluate(objective, model, batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0 < losses[-1] < 0.8 * losses[0] < 1.0  # a map of zeros leaves 1


def test_the_map_between_widths_is_applied_as_it_was_fitted_under_autocast_too():
    teacher, student, weight = torch.randn(2, 40, 12), torch.randn(2, 40, 8), torch.rand(2, 40)
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(_widened(teacher, student, weight))
    assert torch.equal(*found)


@torch.no_grad()
@pytest.mark.parametrize("shift", ["none", "noisy", "clean_boundary"])
@pytest.mark.parametrize("weighting", ["unit", "elbo"])
@pytest.mark.parametrize("complementary", [False, True])
def test_terms_of_the_diffusion_student_follow_their_definitions(
    tiny_model, batch, shift, weighting, complementary
):
    teacher, model = tiny_model(1), tiny_model(2)
    diffusion = diffusion_with(
        token_shift=shift, loss_weighting=weighting, complementary_masks=complementary
    )
    objective = of_diffusion(settings_with(), diffusion, teacher)
    plain = Objective(BlockDiffusion(diffusion, MASK, 3))
    prepared, expected = ask(plain, model, batch)
    denominator = plain.corruption.denominator(prepared)
    asked = TrainStep(model, plain)(prepared)
    masked, student_logits = asked.question, asked.logits_of(asked.hidden_ND)
    teacher_logits = full_logits(teacher, batch)
    keep = torch.arange(40) != MASK
    total = 0.0
    for index, (row, at) in enumerate(zip(masked.row_N, masked.position_N, strict=True)):
        if batch.positions_BT[row, at] > 0:
            weight = masked.weight_N[index].item()
            p, q = teacher_logits[row, at - 1][keep], student_logits[index][keep]
            total += weight * slow_divergence(p, q, 5.0)
    output = evaluate(objective, model, batch)
    assert output.terms["distill/logits"].item() == pytest.approx(total / denominator)
    torch.testing.assert_close(output.terms["distill/cross_entropy"], expected.loss)
    torch.testing.assert_close(output.row_loss_B, expected.row_loss_B)
    assert torch.equal(output.row_tokens_B, expected.row_tokens_B)


@torch.no_grad()
@pytest.mark.parametrize("weighting", ["unit", "elbo"])
def test_relations_of_the_diffusion_student_are_those_of_its_clean_half(
    tiny_model, batch, weighting
):
    teacher, model = tiny_model(1), tiny_model(2)
    relations = {"layer_fractions": [1.0]}
    students = autoregressive(settings_with(relations=relations), teacher)
    expected = evaluate(students, model, batch).terms["distill/relations"]
    # With blocks of one token the clean half is the autoregressive model, and what is supervised
    # under a shift is the same.
    for block_size, same in ((1, True), (4, False)):
        diffusion = diffusion_with(block_size=block_size, loss_weighting=weighting)
        objective = of_diffusion(settings_with(relations=relations), diffusion, teacher)
        ours = evaluate(objective, model, batch).terms["distill/relations"]
        assert torch.allclose(ours, expected) == same


@torch.no_grad()
def test_relations_are_averaged_over_masked_tokens_where_the_loss_is(tiny_model, batch):
    diffusion = diffusion_with(block_size=1, complementary_masks=False)
    objective = of_diffusion(settings_with(), diffusion, tiny_model(1))
    masked = objective.corruption.prepare(batch, 0).views[0].masked_BT
    teacher, model = tiny_model(1), tiny_model(2)
    with captured_projections(teacher, [0]) as of_teacher:
        full_logits(teacher, batch)
    with captured_projections(model, [0]) as of_student:
        full_logits(model, batch)
    relations = relations_divergence(
        *(relation_vectors(found[0], 4) for found in (of_teacher, of_student)),
        batch.document_ids_BT,
        causal=True,
        temperature=1.0,
    )
    ours = evaluate(objective, model, batch).terms["distill/relations"]
    torch.testing.assert_close(ours, relations[masked].mean())


@each_student
def test_relations_of_several_layers_are_the_mean_of_each_and_reach_them_all(
    tiny_model, batch, student
):
    teacher, model = tiny_model(1).double(), tiny_model(2).double()
    weights = {"cross_entropy": 0.0, "logits": 0.0, "relations": 3.0, "hidden": 0.0}
    queries = [layer.self_attn.q_proj.weight for layer in model.model.layers]

    def found(*fractions):
        settings = settings_with(weights=weights, relations={"layer_fractions": [*fractions]})
        output = evaluate(STUDENTS[student](settings, teacher), model, batch)
        gradients = torch.autograd.grad(output.loss, queries, allow_unused=True)
        return output.terms["distill/relations"], gradients

    (first, (of_first, nothing)), (last, through_last) = found(0.0), found(1.0)
    assert nothing is None and all(gradient.any() for gradient in through_last)
    both, gradients = found(0.0, 1.0)
    torch.testing.assert_close(both, (first + last) / 2)
    torch.testing.assert_close(gradients[0], (of_first + through_last[0]) / 2)
    torch.testing.assert_close(gradients[1], through_last[1] / 2)


@each_student
def test_the_loss_is_the_sum_of_the_weighted_terms(tiny_model, batch, student):
    objective = STUDENTS[student](settings_with(), tiny_model(1))
    output = evaluate(objective, tiny_model(2), batch)
    total = 0.0
    for name in TERMS:
        weighted = output.terms[f"distill/{name}_weighted"]
        torch.testing.assert_close(weighted, WEIGHTS[name] * output.terms[f"distill/{name}"])
        assert weighted > 0
        total += weighted
    torch.testing.assert_close(output.loss.detach(), total)
    assert not any(term.requires_grad for term in output.terms.values())


@each_student
@pytest.mark.parametrize("name", TERMS)
def test_a_weight_scales_its_term_and_zero_leaves_it_out(tiny_model, batch, student, name):
    teacher, model = tiny_model(1), tiny_model(2)
    losses = {}
    for weight in (0.0, 1.0, 3.0):
        objective = STUDENTS[student](settings_with(weights={name: weight}), teacher)
        output = evaluate(objective, model, batch)
        losses[weight] = output.loss.item()
        assert (output.terms[f"distill/{name}_weighted"] == 0) == (weight == 0)
        if name != "cross_entropy":
            assert (output.terms[f"distill/{name}"] == 0) == (weight == 0)
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]))


@each_student
def test_a_teacher_that_nobody_asks_does_not_run(tiny_model, batch, student):
    teacher, model, calls = tiny_model(1), tiny_model(2), []
    teacher.model.register_forward_hook(lambda *_: calls.append("body"))
    teacher.lm_head.register_forward_hook(lambda *_: calls.append("head"))
    for weights, expected in (
        ({"logits": 0.0, "relations": 0.0, "hidden": 0.0}, []),
        ({"logits": 0.0, "hidden": 0.0}, ["body"]),
        ({"logits": 0.0, "relations": 0.0}, ["body"]),
        ({"relations": 0.0}, ["body", "head"]),
    ):
        evaluate(STUDENTS[student](settings_with(weights=weights), teacher), model, batch)
        assert calls == expected
        calls.clear()


@each_student
@pytest.mark.parametrize(
    ("term", "changes"),
    [
        ("logits", {"temperature": 2.0}),
        ("logits", {"temperature_squared": True}),
        ("logits", {"direction": "reverse"}),
        ("logits", {"direction": "confidence"}),
        ("relations", {"relations": {"layer_fractions": [1.0]}}),
        ("relations", {"relations": {"heads": 2}}),
        ("relations", {"relations": {"temperature": 0.5}}),
        ("relations", {"relations": {"causal": False}}),
        ("hidden", {"hidden": {"layer_fractions": [0.0]}}),
        ("hidden", {"hidden": {"distance": "cosine"}}),
    ],
    ids=str,
)
def test_every_setting_changes_its_own_term(tiny_model, batch, student, term, changes):
    teacher, model = tiny_model(1), tiny_model(2)
    before = evaluate(STUDENTS[student](settings_with(), teacher), model, batch).terms
    after = evaluate(STUDENTS[student](settings_with(**changes), teacher), model, batch).terms
    for name in TERMS:
        same = torch.allclose(before[f"distill/{name}"], after[f"distill/{name}"], rtol=1e-6)
        assert same == (name != term)
    if "temperature_squared" in changes:
        torch.testing.assert_close(after["distill/logits"], 25 * before["distill/logits"])


@torch.no_grad()
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(tiny_model, batch):
    model = tiny_model(1)
    terms = evaluate(autoregressive(settings_with(), tiny_model(1)), model, batch).terms
    alike = of_diffusion(settings_with(), diffusion_with(block_size=1), tiny_model(1))
    for found in (terms, evaluate(alike, model, batch).terms):
        assert found["distill/logits"].abs() < 1e-12
        assert found["distill/relations"].abs() < 1e-12
        assert found["distill/hidden"].abs() < 1e-12


@each_student
def test_only_the_student_learns(tiny_model, batch, student):
    teacher, model = tiny_model(1).train(), tiny_model(2)
    evaluate(STUDENTS[student](settings_with(), teacher), model, batch).loss.backward()
    assert not teacher.training
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_a_mask_token_beyond_the_teachers_vocabulary_changes_nothing(tiny_model, batch):
    """The grown student is as good as one whose mask token the teacher can't say either."""
    teacher, model = tiny_model(1), tiny_model(2)
    model.resize_token_embeddings(41, mean_resizing=False)
    objective = of_diffusion(settings_with(), diffusion_with(), teacher, 40)
    before = evaluate(objective, model, batch)
    model.lm_head.weight[40] += 5.0
    after = evaluate(objective, model, batch)
    torch.testing.assert_close(before.loss, after.loss)
    with pytest.raises(UserError, match="40 tokens and the student one of 41"):
        evaluate(autoregressive(settings_with(), teacher), model, batch)
