from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wrinklefree.stability.norm import gradient_norm


def test_is_the_norm_of_all_entries() -> None:
    gradients = [torch.randn(7, 3), torch.randn(5), torch.randn(())]
    together = torch.cat([gradient.flatten() for gradient in gradients]).double()
    assert gradient_norm(gradients) == pytest.approx(together.norm().item(), rel=1e-6)
    assert gradient_norm([]) == 0.0


def test_bfloat16_gradients_are_accumulated_in_float32() -> None:
    gradient = torch.full((3000,), 1.01).bfloat16()
    expected = math.sqrt(3000) * gradient[0].item()
    assert gradient_norm([gradient]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_entry_makes_it_not_finite(bad: float) -> None:
    assert not math.isfinite(gradient_norm([torch.ones(3), torch.tensor([1.0, bad])]))


RANK = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from wrinklefree.stability.norm import gradient_norm

dist.init_process_group(
    "gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2
)
whole = torch.arange(10.0)
shards = distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])
print(repr(gradient_norm([shards, torch.tensor([2.0])])))
dist.destroy_process_group()
"""


def test_shards_on_two_ranks_give_the_norm_of_the_whole_on_both(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        printed, _ = rank.communicate(timeout=120)
        assert float(printed.splitlines()[-1]) == pytest.approx(math.sqrt(285 + 4))
