"""The largest tensors of a step are there some rows at a time, and nothing changes by it."""

from __future__ import annotations

import pytest
import torch
from test_accumulation import build, step
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.models import attention, forward
from wrinklefree.train.objectives import distillation
from wrinklefree.train.objectives.objective import TrainStep
from wrinklefree.train.wrapping import wrap_for_training

LENGTH, VOCABULARY = 2048, 4099


def set_blocks(monkeypatch, numbers, tokens, queries):
    monkeypatch.setattr("wrinklefree.kernels.sum_by_blocks.BLOCK_NUMBERS", numbers)
    monkeypatch.setattr(forward, "LEAST_TOKENS", tokens)
    monkeypatch.setattr(distillation, "LEAST_QUERIES", queries)
    monkeypatch.setattr(attention, "QUERIES", queries)


def close(actual, expected):
    return (actual - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("kind", ["causal", "distillation", "diffusion distillation"])
@pytest.mark.parametrize("tied", [False, True])
def test_small_blocks_give_the_loss_and_gradients_of_one(tiny_model, pack, monkeypatch, kind, tied):
    model, teacher = tiny_model(), tiny_model(9)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    target, batch = build(kind, "elbo", True, teacher), pack([[13, 1], [2], [4, 5, 4], [3, 3]], 14)
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(None))
    whole = step(model, target, [batch])
    assert len(calls) == 1
    set_blocks(monkeypatch, 0, 5, 3)
    parts = step(model, target, [batch])
    assert len(calls) > 4
    assert close(parts[0], whole[0])
    assert all(map(close, parts[1], whole[1]))
    assert all(close(parts[2][name], whole[2][name]) for name in whole[2])
    assert close(parts[3], whole[3])


class Watch(TorchDispatchMode):
    """Notes all tensors of at least ``numbers`` that any operation makes."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers
        self.large = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor) and made.numel() >= self.numbers:
                self.large.add((func.__name__, tuple(made.shape)))
        return result


def wide_model(seed):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("kind", ["distillation", "diffusion distillation"])
def test_no_tensor_of_tokens_by_vocabulary_or_of_tokens_by_tokens_is_made(
    pack, make_settings, monkeypatch, kind
):
    model, target = wide_model(1), build(kind, "unit", True, wide_model(2))
    prepared = target.corruption.prepare(pack([[LENGTH - 101, 97]], LENGTH), 0)
    train_step = TrainStep(model, target)
    wrap_for_training(train_step, make_settings())

    def large(numbers):
        set_blocks(monkeypatch, numbers, 128, 32)
        with Watch(LENGTH * LENGTH) as watch:
            target.loss(train_step(prepared), prepared, 1.0).loss.backward()
        return watch.large

    assert not large(2**18)
    shapes = {shape for _, shape in large(2**30)}  # one block: the tensors that there were
    assert any(shape[-1] == VOCABULARY for shape in shapes)
    assert any(shape[-2:] == (LENGTH, LENGTH) for shape in shapes)
