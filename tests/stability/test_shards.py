"""Gradients whose shards lie on two ranks: both decide as one that has the whole would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

RANK = """
import json
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from wrinklefree.stability.clippers import build_clipper
from wrinklefree.stability.gradients import first_non_finite, gradient_health
from wrinklefree.stability.norm import gradient_norm
from wrinklefree.stability.settings import ClippingSettings

rank, ranks, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if ranks > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)


def parameters(scale):
    values = [torch.arange(-3.0, 8.0) * scale, torch.tensor([[2.0]]), torch.tensor(5.0)]
    made = []
    for value in values:
        if ranks > 1 and value.ndim:
            value = distribute_tensor(value, init_device_mesh("cpu", (2,)), [Shard(0)])
        made.append(torch.nn.Parameter(torch.zeros_like(value)))
        made[-1].grad = value
    return made


found = {"norm": gradient_norm([p.grad for p in parameters(1.0)])}
for name in ("zclip", "adagc", "fixed"):
    clipper = build_clipper(ClippingSettings(name=name))
    for scale in [1.0] * 5 + [1000.0]:
        given = parameters(scale)
        stats = clipper.clip(given)
    health = gradient_health(given, stats)
    grads = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in given]
    found[name] = [stats.raw_norm, stats.clipped_norm, health.largest, health.smallest]
    found[name] += torch.cat([grad.flatten() for grad in grads]).tolist()
bad = parameters(1.0)
(bad[0].grad.to_local() if ranks > 1 else bad[0].grad)[0 if rank == 0 else 1:1] = torch.inf
found["culprit"] = first_non_finite([(str(i), p) for i, p in enumerate(bad)])
print(json.dumps(found))
if ranks > 1:
    dist.destroy_process_group()
"""


def run(ranks: int, store: Path) -> list[dict[str, object]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(ranks), str(store)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    return [json.loads(rank.communicate(timeout=120)[0].splitlines()[-1]) for rank in started]


def test_both_ranks_decide_what_one_decides_alone(tmp_path: Path) -> None:
    (alone,) = run(1, tmp_path / "none")
    first, second = run(2, tmp_path / "store")
    assert first == second
    assert alone["culprit"] == first["culprit"] == "0"
    for name in ("norm", "zclip", "adagc", "fixed"):
        one, two = (torch.tensor(found[name], dtype=torch.float64) for found in (alone, first))
        torch.testing.assert_close(one, two, rtol=1e-6, atol=0)
