"""Losses over a vocabulary behind a head on a GPU, both passes: cross-entropy, and the divergence
from a teacher. Ours, by blocks of tokens, against torch and against other projects' kernels.

Shapes: N tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import _peers
import torch
from _timing import (
    H100_BFLOAT16,
    H100_BYTES_PER_SECOND,
    NOT_MEASURED,
    print_header,
    require_close,
    time_on_gpu,
)
from torch import Tensor

from wrinklefree.kernels.sum_by_blocks import block_size, sum_by_blocks
from wrinklefree.kernels.vocabulary_loss import cross_entropy, divergence, reference
from wrinklefree.models.forward import LEAST_TOKENS

MODELS = {"SmolLM2-135M": (576, 49152), "Qwen3-0.6B": (1024, 151936), "Qwen3-4B": (2560, 151936)}
TOKENS = 4096
Loss = Callable[[Tensor, Tensor], Tensor]
"""Of the hidden states of the tokens and the weight of the head, a scalar: the mean over tokens."""


def floors(width: int, words: int) -> dict[str, float]:
    """Least milliseconds on an H100: products with heads, and bytes of logits and gradients."""
    product = 2 * TOKENS * width * words / H100_BFLOAT16
    logits = 2 * TOKENS * words / H100_BYTES_PER_SECOND
    losses = {"cross-entropy": 3 * product + 3 * logits, "divergence": 4 * product + 5 * logits}
    return {name: 1e3 * seconds for name, seconds in losses.items()}


def both_ways(loss: Loss, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """The loss, and its gradients in hidden states and head."""
    value = loss(*leaves)
    return value.detach(), *torch.autograd.grad(value, leaves)


def timed(title: str, losses: dict[str, Loss], leaves: list[Tensor]) -> None:
    truth = both_ways(losses["torch"], leaves)
    for name, loss in losses.items():
        for actual, expected in zip(both_ways(loss, leaves), truth, strict=True):
            require_close(actual, expected, 2e-2, f"loss or gradient of {name}")
    calls = {name: lambda loss=loss: both_ways(loss, leaves) for name, loss in losses.items()}
    time_on_gpu(title, calls, "torch")


def by_blocks(of_block: Callable[[slice, Tensor], Tensor], words: int) -> Loss:
    """The mean over tokens of what a block of logits gives each of its tokens."""

    def loss(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
        def total(rows: slice, hidden_ND: Tensor) -> Tensor:
            return of_block(rows, hidden_ND[rows] @ head_VD.T).sum()

        size = block_size(words, least=LEAST_TOKENS)
        return sum_by_blocks(total, [hidden_ND], [head_VD], rows=TOKENS, size=size) / TOKENS

    return loss


def time_losses(width: int, words: int) -> None:
    def drawn(rows: int) -> Tensor:
        return torch.randn(rows, width, device="cuda", dtype=torch.bfloat16)

    leaves = [drawn(TOKENS).requires_grad_(), (drawn(words) / width**0.5).requires_grad_()]
    taught_ND, teacher_VD = drawn(TOKENS), drawn(words) / width**0.5
    target_N = torch.randint(0, words, (TOKENS,), device="cuda")

    def plain(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
        return reference.cross_entropy(hidden_ND @ head_VD.T, target_N).mean()

    ours = by_blocks(lambda rows, logits: cross_entropy(logits, target_N[rows]), words)
    losses = {"torch": plain, "compiled": torch.compile(plain), "ours, by blocks": ours}
    losses |= _peers.cross_entropies(target_N)
    shape = f"{TOKENS} tokens of {width} features, {words} words"
    timed(f"cross-entropy, {shape}", losses, leaves)

    def divergence_of(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
        pair = taught_ND @ teacher_VD.T, hidden_ND @ head_VD.T
        return reference.divergence(*pair, 1.0, reverse=False).mean()

    def of_block(rows: slice, logits_NV: Tensor) -> Tensor:
        teacher_NV = taught_ND[rows] @ teacher_VD.T
        return divergence(teacher_NV, logits_NV, temperature=1.0, reverse=False)

    losses = {
        "torch": divergence_of,
        "compiled": torch.compile(divergence_of),
        "ours, by blocks": by_blocks(of_block, words),
        **_peers.divergences(taught_ND, teacher_VD),
    }
    timed(f"divergence, {shape}", losses, leaves)


def main() -> None:
    print_header("Losses over a vocabulary, both passes")
    for model, (width, words) in MODELS.items():
        print(f"\n{model}: {words} words, floor on an H100 in milliseconds")
        for name, milliseconds in floors(width, words).items():
            print(f"  {name:<36}{milliseconds:10.4f}")
        if torch.cuda.is_available():
            time_losses(width, words)
    if not torch.cuda.is_available():
        print(f"\n{NOT_MEASURED}")


if __name__ == "__main__":
    main()
