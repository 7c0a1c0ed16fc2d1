from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.errors import UserError
from wrinklefree.stability.initial_loss import check_initial_loss


def first_loss(initializer_range: float) -> float:
    config = LlamaConfig(
        vocab_size=101,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=initializer_range,
    )
    tokens = torch.randint(101, (4, 33))
    return LlamaForCausalLM(config)(input_ids=tokens, labels=tokens, use_cache=False).loss.item()


def test_a_usual_initialisation_passes_and_a_large_one_does_not() -> None:
    check_initial_loss(first_loss(0.02), 101)
    with pytest.raises(UserError, match="initializer_range"):
        check_initial_loss(first_loss(0.9), 101)


@pytest.mark.parametrize("factor", [0.905, 1.0, 1.095])
def test_within_ten_percent_passes(factor: float) -> None:
    check_initial_loss(factor * math.log(49152), 49152)


@pytest.mark.parametrize("loss", [0.89 * math.log(300), 1.11 * math.log(300), math.nan, math.inf])
def test_beyond_ten_percent_or_not_finite_is_an_error_with_both_numbers(loss: float) -> None:
    with pytest.raises(UserError) as caught:
        check_initial_loss(loss, 300)
    assert f"{loss:.4g}" in str(caught.value) and f"{math.log(300):.4g}" in str(caught.value)
