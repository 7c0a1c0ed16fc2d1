"""A stack of matrices that is stepped at once moves as its matrices do one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from wrinklefree.optim import muon
from wrinklefree.optim.muon import Muon, MuonLike
from wrinklefree.optim.muon8bit import Muon8bit
from wrinklefree.optim.newton_schulz import Coefficients, orthogonalize
from wrinklefree.optim.normuon import NorMuon

VARIANTS: dict[str, Callable[..., MuonLike]] = {
    "muon": Muon,
    "muonclip": partial(Muon, nesterov=False),
    "normuon": partial(NorMuon, row_decay=0.9),
    "muon8bit linear": partial(Muon8bit, quantization="linear"),
    "muon8bit dynamic": partial(Muon8bit, quantization="dynamic"),
}
STACKS = [((4, 6, 50), None), ((4, 50, 6), None), ((4, 50, 70), [25, 25]), ((4, 9, 7), [5, 2, 2])]


def stepped(
    optimizer: MuonLike, parameter: nn.Parameter, gradients: list[Tensor]
) -> dict[str, Tensor]:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return {"weight": parameter.detach(), **optimizer.state[parameter]}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("shape", "rows"), STACKS)
@pytest.mark.parametrize("compute", [torch.float64, torch.bfloat16])
def test_a_stack_at_once_moves_as_its_matrices_one_by_one(
    name: str,
    shape: tuple[int, ...],
    rows: list[int] | None,
    compute: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Experts of very different size, one without tokens: each needs a norm of its own.
    size = torch.tensor([1.0, 1e-3, 0.0, 1e3], dtype=torch.float64)[:, None, None]
    gradients = [size * torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    start, ends = torch.randn(shape, dtype=torch.float64), []
    for stacked in (False, True):
        monkeypatch.setattr(muon, "takes_stacks", lambda device, stacked=stacked: stacked)
        parameter = nn.Parameter(start.clone())
        group = {"params": [parameter], "rows": rows}
        optimizer = VARIANTS[name](
            [group], lr=0.1, scale="original", weight_decay=0.1, compute_dtype=compute
        )
        ends.append(stepped(optimizer, parameter, gradients))
    one_by_one, at_once = ends
    assert one_by_one.keys() == at_once.keys()
    for key, expected in one_by_one.items():
        if key not in ("weight", "row_square"):  # nothing of the update is in them
            assert torch.equal(at_once[key], expected)
        elif compute == torch.float64:
            torch.testing.assert_close(at_once[key], expected, rtol=1e-11, atol=1e-11)
    # In bfloat16 sums have another order and are rounded to 8 bits; 15 products later an update
    # may differ by a percent, as one does from its truth.
    moved, difference = one_by_one["weight"] - start, at_once["weight"] - one_by_one["weight"]
    assert (difference.norm(dim=(1, 2)) <= 0.02 * moved.norm(dim=(1, 2))).all()


@pytest.mark.parametrize("shape", [(3, 17, 63), (3, 63, 17), (1, 5, 5)])
@pytest.mark.parametrize("kind", ["classic", "polar_express"])
def test_each_matrix_of_a_stack_is_orthogonalized_alone(
    shape: tuple[int, ...], kind: Coefficients
) -> None:
    stack = torch.randn(shape, dtype=torch.float64) * 10.0 ** torch.arange(shape[0])[:, None, None]
    alone = torch.stack([orthogonalize(matrix, torch.float64, kind) for matrix in stack])
    together = orthogonalize(stack, torch.float64, kind)
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-11)
