from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.utils.checkpoint import checkpoint

from wrinklefree.quant import codes as module
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.codes import WeightCodes, activation_codes


def with_optimizer(build: Callable[[list[nn.Parameter]], torch.optim.Optimizer]):
    def change(layer: BitLinear) -> None:
        layer.weight.grad = torch.randn_like(layer.weight)
        build([layer.weight]).step()

    return change


def hidden_write(layer: BitLinear) -> None:
    """As sharded parameters are gathered: without a trace in the count, after an optimizer."""
    with _unsafe_preserve_version_counter(layer.weight), torch.no_grad():
        layer.weight.normal_()
    torch.optim.SGD([nn.Parameter(torch.zeros(1))]).step()


def new_data_at_the_old_address(layer: BitLinear) -> None:
    """An address is given out again once its data is gone; assignments are not counted."""
    layer._weight_codes()
    size, address = layer.weight.shape, layer.weight.data_ptr()
    for _ in range(50):
        layer.weight.data = torch.empty(0)
        layer.weight.data = torch.randn(size)
        if layer.weight.data_ptr() == address:
            break


def another_parameter_of_the_same_data(layer: BitLinear) -> None:
    """Counts of changes are each parameter's own, and both begin at 0."""
    before = layer.weight = nn.Parameter(layer.weight.detach().clone())
    layer._weight_codes()
    layer.weight = nn.Parameter(before.data)
    with torch.no_grad():
        before.normal_()


def state_dict(layer: BitLinear) -> None:
    layer.load_state_dict({"weight": torch.randn_like(layer.weight)})


def in_place(layer: BitLinear) -> None:
    with torch.no_grad():
        layer.weight[:4].neg_()
        layer.weight.lerp_(torch.randn_like(layer.weight), 0.9)


def copied(layer: BitLinear) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))


def through_a_view(layer: BitLinear) -> None:
    view = layer.weight.detach().unflatten(0, (2, -1))
    view.mul_(torch.randn_like(view))


def moved_there_and_back(layer: BitLinear) -> None:
    layer.double()
    in_place(layer)
    layer.float()


CHANGES: list[Callable[[BitLinear], None]] = [
    with_optimizer(lambda p: torch.optim.AdamW(p, lr=0.5, foreach=True)),
    with_optimizer(lambda p: torch.optim.AdamW(p, lr=0.5, fused=True)),
    with_optimizer(lambda p: torch.optim.AdamW(p, lr=0.5, foreach=False)),
    with_optimizer(lambda p: torch.optim.SGD(p, lr=0.5, fused=True)),
    hidden_write,
    new_data_at_the_old_address,
    another_parameter_of_the_same_data,
    state_dict,
    in_place,
    copied,
    through_a_view,
    moved_there_and_back,
]


@given(
    order=st.lists(st.sampled_from(CHANGES), min_size=1, max_size=6),
    copies=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_codes_are_those_of_the_weight_whatever_happened_to_it(
    order: list[Callable[[BitLinear], None]], copies: bool
) -> None:
    layer, x = BitLinear(96, 64), torch.randn(3, 96)
    for change in order:
        layer(x)
        if copies:
            layer = copy.deepcopy(layer)
        change(layer)
        held, fresh = layer._weight_codes(), layer.ternary_codes()
        assert all(map(torch.equal, held, fresh)), change
        assert torch.equal(layer(x), BitLinear.from_linear(as_linear(layer))(x))


def as_linear(layer: BitLinear) -> nn.Linear:
    linear = nn.Linear(96, 64, bias=False)
    linear.weight = nn.Parameter(layer.weight.detach().clone())
    return linear


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__qualname__)
def test_each_change_is_seen(change: Callable[[BitLinear], None]) -> None:
    layer = BitLinear(96, 64)
    layer._weight_codes()
    before = layer.ternary_codes()
    change(layer)
    assert not all(map(torch.equal, before, layer.ternary_codes()))
    assert all(map(torch.equal, layer._weight_codes(), layer.ternary_codes()))


def test_codes_are_made_once_between_updates_and_once_for_ever_when_frozen() -> None:
    layer, made = BitLinear(96, 64), []
    original = layer.ternary_codes
    layer.ternary_codes = lambda: made.append(1) or original()  # pyright: ignore
    x = torch.randn(3, 96)
    for _ in range(3):
        layer(x).sum().backward()
    with torch.no_grad():
        layer(x)
    assert len(made) == 1
    with_optimizer(lambda p: torch.optim.AdamW(p))(layer)
    layer(x)
    layer(x)
    assert len(made) == 2
    layer.requires_grad_(False)
    layer(x)
    made.clear()
    with_optimizer(lambda p: torch.optim.AdamW(p))(BitLinear(96, 64))
    layer(x)
    assert not made


def test_a_copy_holds_no_codes() -> None:
    layer = BitLinear(96, 64)
    layer._weight_codes()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(twin._codes, WeightCodes)
        assert twin._codes._held is None


def test_codes_made_in_inference_mode_can_train() -> None:
    layer, x = BitLinear(96, 64), torch.randn(3, 96)
    with torch.inference_mode():
        expected = layer(x)
        y = torch.randn(3, 96)
        assert torch.equal(activation_codes(y)[0], activation_codes(y.clone())[0])
    output = layer(x)
    output.sum().backward()
    assert torch.equal(output, expected)


def test_only_the_same_unchanged_tensor_shares_its_codes() -> None:
    x = torch.randn(5, 63)
    first = activation_codes(x)
    assert activation_codes(x)[0] is first[0]
    for other in (x.clone(), x.view_as(x), x.detach()):
        assert activation_codes(other)[0].data_ptr() != first[0].data_ptr()
    first = activation_codes(x)
    x[0] *= -3
    second = activation_codes(x)
    assert not torch.equal(second[0], first[0])
    view, second = x[1:], activation_codes(x)
    view.neg_()
    assert not torch.equal(activation_codes(x)[0], second[0])


def test_codes_are_forgotten_with_their_tensor() -> None:
    x = torch.randn(5, 63)
    activation_codes(x)
    assert module._last is not None
    del x
    gc.collect()
    assert module._last is None


def test_siblings_save_the_codes_of_their_input_once() -> None:
    layers, x = [BitLinear(64, 32) for _ in range(3)], torch.randn(5, 64, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        hidden = x * 2
        outputs = [layer(hidden) for layer in layers]
    codes = {t.untyped_storage().data_ptr() for t in saved if t.shape == hidden.shape}
    assert len(outputs) == 3 and len(codes) == 1
    assert all(t.dtype == torch.int8 for t in saved if t.shape == hidden.shape)


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_have_the_same_gradients(reentrant: bool) -> None:
    layers = nn.ModuleList([BitLinear(64, 64) for _ in range(3)])

    def run(x: Tensor) -> Tensor:
        q, k, v = (layer(x) for layer in layers)
        return torch.tanh(q) * k + v

    found = []
    for wrap in (run, lambda x: checkpoint(run, x, use_reentrant=reentrant)):
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(3), requires_grad=True)
        layers.zero_grad()
        wrap(wrap(x)).square().sum().backward()
        found.append([x.grad, *(layer.weight.grad for layer in layers)])
    assert all(map(torch.equal, *found))
