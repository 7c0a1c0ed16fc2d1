from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wrinklefree.errors import UserError
from wrinklefree.evaluate.generate import decode_greedily
from wrinklefree.mixture.batch import Batch
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.depths import captured_choices, mix_depths, skipping_layers
from wrinklefree.models.exportable import export_obstacles
from wrinklefree.models.folder import load_model, save_model
from wrinklefree.models.forward import next_token_logits
from wrinklefree.models.future_heads import attach_future_heads
from wrinklefree.models.layers import decoder_layers
from wrinklefree.models.projections import attention_of
from wrinklefree.models.settings import MixtureOfDepthsSettings, SublnSettings
from wrinklefree.models.subln_stage import insert_subln_stage
from wrinklefree.models.transforms import DiffuseBlocks, MixDepths, ModelFormat
from wrinklefree.optim.partition import partition_parameters

Tiny = Callable[..., PreTrainedModel]
MakeBatch = Callable[..., Batch]
FAMILIES = ("llama", "qwen3")


def mixed(model: PreTrainedModel, capacity: float = 0.4, *, decided: bool = True) -> Any:
    """A model of 4 layers, of which 2 leave tokens out; ``decided``: routers and predictors are as
    if they had been trained, each to something else."""
    mix_depths(model, every=2, capacity=capacity)
    if decided:
        for index in skipping_layers(model):
            choice: Any = decoder_layers(model)[index].get_submodule("choice")
            nn.init.normal_(choice.router)
            nn.init.normal_(choice.predictor)
            nn.init.zeros_(choice.bias)
    return model


def read(model: PreTrainedModel, rows: Batch) -> Tensor:
    mask = causal_document_mask(rows.document_ids_BT)
    return next_token_logits(model, rows.tokens_BT, rows.positions_BT, mask)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_computes_all_tokens_with_weight_one_is_the_dense_one(
    tiny: Tiny, batch: MakeBatch, family: str, training: bool
) -> None:
    model, rows = tiny(family, num_hidden_layers=4).double(), batch()
    dense = read(model, rows)
    dense.square().sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    mixed(model, 1.0, decided=False).double().train(training)
    for index in skipping_layers(model):
        nn.init.zeros_(decoder_layers(model)[index].get_submodule("choice").get_parameter("router"))
    found = read(model, rows)
    found.square().sum().backward()
    torch.testing.assert_close(found, dense)
    for name, gradient in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


def one_by_one(layer: Any, given: dict[str, Any], hidden_BTD: Tensor, chosen_BT: Tensor) -> Tensor:
    """What a layer makes of rows, by transformers' layer on the chosen tokens of each alone."""
    mask_BTT, (cos_BTE, sin_BTE) = given["attention_mask"][:, 0], given["position_embeddings"]
    rows = []
    for row, chosen_T in enumerate(chosen_BT):
        at_C = [place for place, chosen in enumerate(chosen_T.tolist()) if chosen]
        taken_CD = hidden_BTD[row, at_C]
        mask = torch.tensor([[bool(mask_BTT[row, q, k]) for k in at_C] for q in at_C])
        output_CD = layer._compute(
            layer,
            taken_CD[None],
            attention_mask=mask[None, None],
            position_embeddings=(cos_BTE[row, at_C][None], sin_BTE[row, at_C][None]),
        )[0]
        out_TD = hidden_BTD[row].clone()
        for place, given_D, output_D in zip(at_C, taken_CD, output_CD, strict=True):
            normal_D = given_D / (given_D.square().mean() + torch.finfo(given_D.dtype).eps).sqrt()
            weight = 2 / (1 + torch.exp(-(normal_D @ layer.choice.router)))
            out_TD[place] = given_D + weight * (output_D - given_D)
        rows.append(out_TD)
    return torch.stack(rows)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_tokens_are_computed_among_themselves_and_the_others_pass_by(
    tiny: Tiny, batch: MakeBatch, family: str, training: bool
) -> None:
    model, rows = mixed(tiny(family, num_hidden_layers=4)).double().train(training), batch()
    layer, seen = decoder_layers(model)[1], {}

    def keep(module: nn.Module, given: tuple[Any, ...], named: Any, output: Tensor) -> None:
        seen.update(hidden=given[0], named=named, output=output)

    with captured_choices(model) as choices, layer.register_forward_hook(keep, with_kwargs=True):
        read(model, rows)
    chosen_BT = choices[0].chosen_BT
    if training:
        assert chosen_BT.sum(1).tolist() == [14] * 3  # 0.4 of 33, rounded up
        score_BT = choices[0].weight_BT
        least, most = score_BT[0][chosen_BT[0]].min(), score_BT[0][~chosen_BT[0]].max()
        assert least >= most  # equal where equal tokens begin two documents
    else:
        assert len(set(chosen_BT.sum(1).tolist())) > 1, "rows have as many tokens"
        assert torch.equal(chosen_BT, choices[0].logit_BT > 0)
    expected = one_by_one(layer, seen["named"], seen["hidden"], chosen_BT)
    torch.testing.assert_close(seen["output"], expected)
    assert torch.equal(seen["output"][~chosen_BT], seen["hidden"][~chosen_BT])


def test_in_evaluation_no_later_token_and_no_other_row_changes_anything(
    tiny: Tiny, batch: MakeBatch
) -> None:
    model, rows = mixed(tiny(num_hidden_layers=4)).double(), batch()
    whole = read(model, rows)
    for cut in (5, 12, 25):
        other = rows.tokens_BT.clone()
        other[:, cut:] = torch.randint(1, 97, other[:, cut:].shape)
        changed = read(model, Batch(**vars(rows) | {"tokens_BT": other}))
        torch.testing.assert_close(changed[:, :cut], whole[:, :cut])
        assert not torch.allclose(changed[:, cut:], whole[:, cut:])
    alone = read(model, Batch(*(value[1:2] for value in vars(rows).values())))
    torch.testing.assert_close(alone, whole[1:2])
    model.train()
    trained = read(model, rows), read(model, Batch(**vars(rows) | {"tokens_BT": other}))
    assert not torch.allclose(trained[0][:, :25], trained[1][:, :25]), "top-k looks ahead"


def test_a_text_that_is_written_token_by_token_is_the_one_that_is_read_at_once(tiny: Tiny) -> None:
    model = mixed(tiny(num_hidden_layers=4, initializer_range=0.3)).double()
    prompt = [5, 9, 2, 40, 11]
    new = decode_greedily(model, prompt, new_tokens=14, end_of_text_id=97)
    with torch.no_grad(), captured_choices(model) as choices:
        logits_TV = model(torch.tensor([prompt + new]), use_cache=False).logits[0]
    assert new == logits_TV[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert all(0 < choice.chosen_BT.sum() < 19 for choice in choices)


def test_several_texts_are_read_at_once_but_go_on_alone(tiny: Tiny) -> None:
    model, tokens_BT = mixed(tiny(num_hidden_layers=4)).double(), torch.randint(1, 97, (3, 20))
    cached = model(tokens_BT)  # with the cache that transformers makes unless told otherwise
    torch.testing.assert_close(cached.logits, model(tokens_BT, use_cache=False).logits)
    with pytest.raises(UserError, match="3 texts go on token by token.* one text after the other"):
        model(tokens_BT[:, :1], past_key_values=cached.past_key_values)


def test_the_loss_teaches_routers_and_leaves_predictors_alone(tiny: Tiny, batch: MakeBatch) -> None:
    model = mixed(tiny(num_hidden_layers=4)).train()
    with captured_choices(model) as choices:
        read(model, batch()).square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if "choice" in name}
    for index in (1, 3):
        assert found[f"model.layers.{index}.choice.router"].abs().min() > 0
        assert found[f"model.layers.{index}.choice.predictor"] is None
    model.zero_grad()
    sum(choice.logit_BT.sum() for choice in choices).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    names = {
        f"model.layers.{index}.choice.{leaf}" for index in (1, 3) for leaf in ("predictor", "bias")
    }
    assert reached == names


@pytest.mark.parametrize(("gain", "norms"), [("calibrated", ("subln",)), ("none", ())])
def test_the_stage_gives_a_student_that_learns_to_leave_tokens_out(
    gain: Any,
    norms: tuple[str, ...],
    tiny: Tiny,
    batch: MakeBatch,
    tokenizer_folder: Path,
    tmp_path: Path,
) -> None:
    save_model(tmp_path / "base", tiny(num_hidden_layers=4), ModelFormat(), tokenizer_folder)
    rows, facts = [batch(rows=4)], {}
    for name, depths in {"whole": None, "mixed": MixtureOfDepthsSettings(capacity=0.25)}.items():
        settings = SublnSettings(gain=gain, mixture_of_depths=depths)
        facts[name] = insert_subln_stage(settings, tmp_path / "base", rows, rows, tmp_path / name)
    # Untrained, all tokens are computed, with weights of nearly 1.
    for loss in ("loss_after_lambda0", "loss_ternary_without_subln"):
        assert facts["mixed"][loss] == pytest.approx(facts["whole"][loss], abs=0.05)
    assert facts["mixed"]["entries"]["dense"]["choice.router"] == 2 * 64
    student, student_format = load_model(tmp_path / "mixed", "ternary")
    assert student_format.names == ("mixture_of_depths", *norms, "bitlinear")
    assert skipping_layers(student) == [1, 3]
    with captured_choices(student.train()) as choices:
        read(student, rows[0])
    assert choices[1].chosen_BT.sum(1).tolist() == [9] * 4
    kinds = {id(p): part.kind for part in partition_parameters(student) for p in part.parameters}
    assert {kinds[id(p)] for n, p in student.named_parameters() if "choice" in n} == {"other"}


@pytest.mark.parametrize(("every", "layers"), [(2, [1, 3]), (3, [2]), (4, [3])])
def test_every_so_many_layers_one_leaves_tokens_out(
    tiny: Tiny, every: int, layers: list[int]
) -> None:
    model = tiny(num_hidden_layers=4)
    mix_depths(model, every, 0.5)
    assert skipping_layers(model) == layers


def test_routers_of_another_seed_begin_with_other_weights(tiny: Tiny) -> None:
    found = []
    for seed in (0, 0, 1):
        model = tiny(num_hidden_layers=2)
        MixDepths(every=2, capacity=0.5, seed=seed).apply(model)
        found.append([p for name, p in model.named_parameters() if name.endswith("router")])
    assert all(map(torch.equal, found[0], found[1]))
    assert not any(map(torch.equal, found[0], found[2]))


def test_what_layers_that_leave_tokens_out_cannot_do_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="layers of qwen3_moe can't leave tokens out"):
        mix_depths(tiny("qwen3_moe"), 2, 0.5)
    with pytest.raises(UserError, match="every is 3 and the model has 2 layers"):
        mix_depths(tiny(), 3, 0.5)
    model = mixed(tiny(num_hidden_layers=4))
    with pytest.raises(UserError, match="set future_tokens.heads to 0"):
        attach_future_heads(model, 1)
    with pytest.raises(UserError, match="set dlm.enabled to false"):
        DiffuseBlocks(block_size=4, token_shift="none", mask_token_id=3).apply(model)
    with pytest.raises(UserError, match="layer 3 leaves some out"):
        attention_of(model, 3)
    assert attention_of(model, 2)
    assert export_obstacles(model) == ["some of its layers leave tokens out"]
