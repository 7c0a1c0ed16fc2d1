from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from asking import evaluate
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from wrinklefree.diffusion.settings import DiffusionSettings
from wrinklefree.models.attention import causal_document_mask
from wrinklefree.models.experts import captured_routers
from wrinklefree.models.forward import hidden_states
from wrinklefree.train.objectives.block_diffusion import BlockDiffusion
from wrinklefree.train.objectives.inside import Seen
from wrinklefree.train.objectives.next_token import NextToken
from wrinklefree.train.objectives.objective import Objective
from wrinklefree.train.objectives.question import Outputs
from wrinklefree.train.objectives.router import RouterBalance, with_balanced_routers

ROWS = [[13, 1], [2], [4, 5, 4], [3, 3]]


def moe(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=16, norm_topk_prob=True, initializer_range=0.3,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).double().eval()
    model.set_experts_implementation("eager")
    return model


def balanced(weight: float, corruption: Any = None) -> Objective:
    return with_balanced_routers(Objective(corruption or NextToken()), moe(), weight)


def test_the_loss_is_the_mean_over_layers_of_that_of_transformers(pack: Any) -> None:
    model, batch = moe(), pack(ROWS, 14)
    _, output = evaluate(balanced(0.5), model, batch)
    plain = evaluate(Objective(NextToken()), model, batch)[1].loss
    (output.loss - plain).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    real_BT = batch.document_ids_BT >= 0
    assert not real_BT.all()
    with captured_routers(model) as logits:
        mask = causal_document_mask(batch.document_ids_BT)
        hidden_states(model, batch.tokens_BT, batch.positions_BT, mask)
    expected = torch.stack(
        [load_balancing_loss_func((one.flatten(0, 1),), 6, 2, real_BT) for one in logits]
    ).mean()
    assert output.terms["train/router_balance"].item() == pytest.approx(expected.item(), rel=1e-6)
    weighted = output.terms["train/router_balance_weighted"].item()
    assert weighted == pytest.approx(0.5 * expected.item(), rel=1e-6)
    assert (output.loss - plain).item() == pytest.approx(weighted, rel=1e-6)
    (0.5 * expected).backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gate = "model.layers.0.mlp.gate.weight"
    assert found[gate].norm() > 0
    torch.testing.assert_close(found[gate], wanted[gate], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("logits", "balance", "entropy", "busiest", "dead"),
    [
        ([[0.0, 0.0, 0.0, 0.0]] * 2, 2.0, math.log(4), 1.0, 2.0),
        ([[50.0, 50.0, -50.0, -50.0]] * 2, 4.0, math.log(2), 1.0, 2.0),
        ([[50.0, 50.0, -50.0, -50.0], [-50.0, -50.0, 50.0, 50.0]], 2.0, math.log(2), 0.5, 0.0),
    ],
    ids=["undecided", "all to two", "half and half"],
)
def test_metrics_say_how_tokens_are_spread(
    logits: list[list[float]], balance: float, entropy: float, busiest: float, dead: float
) -> None:
    term, logits_BTE = RouterBalance(2), torch.tensor([[*logits, [9.0, 0.0, 0.0, 0.0]]])
    question: Any = SimpleNamespace(
        piece_BT=torch.tensor([[0, 0, -1]]), clean_weight_BT=torch.tensor([[False, True, False]])
    )
    seen: Any = {term.name: Seen(None, [], [logits_BTE, logits_BTE])}
    total, metrics = term.read(Outputs(question, torch.empty(0), moe(), seen))
    assert total.item() == pytest.approx(balance)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {"router/entropy": entropy, "router/busiest_share": busiest, "router/dead_experts": dead}
    )


def test_without_weight_routers_are_watched_and_nothing_else(pack: Any) -> None:
    model, batch = moe(), pack(ROWS, 14)
    output, plain = (
        evaluate(objective, model, batch)[1]
        for objective in (balanced(0.0), Objective(NextToken()))
    )
    assert output.loss.item() == plain.loss.item()
    assert output.terms["train/router_balance_weighted"] == 0 < output.terms["router/entropy"]


def test_a_model_without_routers_has_no_such_term(tiny_model: Any) -> None:
    objective = Objective(NextToken())
    assert with_balanced_routers(objective, tiny_model(), 0.5) is objective


def test_of_a_diffusion_student_the_clean_text_counts(pack: Any) -> None:
    model, batch = moe(), pack([[8, 4]], 12)
    settings = DiffusionSettings(block_size=4, token_shift="none", complementary_masks=True)
    _, output = evaluate(balanced(1.0, BlockDiffusion(settings, 39, 3)), model, batch)
    with captured_routers(model) as logits:
        # The clean half attends to whole blocks of its own document.
        blocks = torch.arange(12) // 4
        documents = batch.document_ids_BT[0]
        hidden_states(
            model,
            batch.tokens_BT,
            batch.positions_BT,
            _rule((blocks[:, None] >= blocks) & (documents[:, None] == documents)),
        )
    expected = [load_balancing_loss_func((one.flatten(0, 1),), 6, 2) for one in logits]
    found = output.terms["train/router_balance"].item()
    assert found == pytest.approx(torch.stack(expected).mean().item(), rel=1e-6)


def _rule(allowed_TT: torch.Tensor) -> Any:
    return SimpleNamespace(of=lambda model: allowed_TT[None, None])
