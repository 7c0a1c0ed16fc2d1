"""Training steps by how OpenMP's threads wait, alone and beside a busy process."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys

from _timing import print_header, require

POLICIES: dict[str, dict[str, str]] = {
    "spinning": {"OMP_WAIT_POLICY": "active"},
    "sleeping": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "as the package sets it": {},
}
REPEATS = 3
# A process of its own: OpenMP reads its policy once. It prints its seconds and what it computed.
STEPS = """
import hashlib, json, time
from wrinklefree.quant.bitlinear import BitLinear
import torch
torch.set_num_threads(2)
torch.manual_seed(0)
sizes = [256, 768] * 4 + [256]
model = torch.nn.Sequential(*(BitLinear(m, n) for m, n in zip(sizes, sizes[1:])))
x = torch.randn(16, 128, 256)
seconds = []
for step in range(41):
    started = time.perf_counter()
    model.zero_grad()
    model(x).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    seconds.append(time.perf_counter() - started)
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
print(json.dumps([sum(seconds[1:]), hashlib.sha256(weights).hexdigest()]))
"""


def spin() -> None:
    while True:
        pass


def steps(policy: str) -> tuple[float, str]:
    """Seconds of 40 steps and the digest of their weights."""
    # This process has imported the package, which set both.
    inherited = {k: v for k, v in os.environ.items() if k not in POLICIES["sleeping"]}
    environment = inherited | POLICIES[policy]
    command = [sys.executable, "-c", STEPS]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return tuple(json.loads(out.stdout))


def main() -> None:
    print_header("40 steps of eight BitLinear layers, two threads; seconds: median (min to max)")
    busy = multiprocessing.Process(target=spin, daemon=True)
    digests: set[str] = set()
    for neighbour in ("alone", "beside one busy process"):
        if neighbour != "alone":
            busy.start()
        seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
        for _ in range(REPEATS):
            for policy in POLICIES:
                taken, digest = steps(policy)
                seconds[policy].append(taken)
                digests.add(digest)
        require(len(digests) == 1, "the same weights whatever the policy")
        for policy, each in seconds.items():
            low, median, high = sorted(each)
            print(f"{neighbour}, {policy}: {median:.2f} ({low:.2f} to {high:.2f})")
    busy.kill()


if __name__ == "__main__":
    main()
