"""What other projects have for the same work, timed beside ours where it is installed.

Every call is compared with ours before it is timed, as near as its own rounding allows. Run alone
this does nothing. Shapes: M tokens, N inputs, O outputs of a layer.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from _timing import require_close
from torch import Tensor, nn

from wrinklefree.models.saving import rms_norm

Calls = dict[str, Callable[[], Any]]
Losses = dict[str, Callable[[Tensor, Tensor], Tensor]]
"""Of hidden states and the weight of a head."""


@functools.cache
def peer(package: str, module: str) -> Any:
    """The module, or None and a line that says that its package is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        print(f"not measured: {package} is missing: pip install -c constraints.txt -e '.[peers]'")
        return None


def activation_codes(activation_MN: Tensor, seen_MN: Tensor) -> Calls:
    """Codes that are floats again, rounded half up, in the arithmetic of the activation's type."""
    if (peers := peer("onebitllms", "onebitllms")) is None:
        return {}
    call = lambda: peers.activation_quant_triton(activation_MN[None])[0]  # noqa: E731
    require_close(call(), seen_MN, 1e-2, "activation codes of onebitllms")
    return {"onebitllms, to floats": call}


def weight_codes(layers: list[Tensor], seen_ON: Tensor) -> Calls:
    """Absmean codes of each weight that are floats again."""
    if (peers := peer("onebitllms", "onebitllms")) is None:
        return {}
    require_close(peers.weight_quant_triton(layers[0]), seen_ON, 2e-2, "weight of onebitllms")
    return {"onebitllms, to floats": lambda: [peers.weight_quant_triton(w) for w in layers]}


def norm(activation_MN: Tensor, gain_N: Tensor, epsilon: float) -> Calls:
    """The norm of SubLN without codes."""
    if (peers := peer("liger-kernel", "liger_kernel.transformers.functional")) is None:
        return {}
    gain_N = gain_N.to(activation_MN.dtype)
    call = functools.partial(peers.liger_rms_norm, activation_MN, gain_N, epsilon, in_place=False)
    require_close(call(), rms_norm(activation_MN, gain_N, epsilon), 1e-2, "norm of Liger")
    return {"liger, norm alone": call}


def products(
    halves_MN: Tensor, codes_MN: Tensor, scale_M1: Tensor, weight_ON: Tensor, weight_scale: Tensor,
    truth_MO: Tensor,
) -> Calls:  # fmt: skip
    """int8 products, of codes that are there and of codes that are made; compiled, as is meant."""
    if (peers := peer("torchao", "torchao.kernel.intmm")) is None:
        return {}
    quantization = importlib.import_module("torchao.quantization")
    scaled, weight_NO = torch.compile(peers.int_scaled_matmul), weight_ON.T.contiguous()
    layer = nn.Linear(*weight_NO.shape, bias=False, device=halves_MN.device, dtype=halves_MN.dtype)
    layer.weight = nn.Parameter((weight_ON * weight_scale).to(halves_MN.dtype), requires_grad=False)
    quantization.quantize_(layer, quantization.Int8DynamicActivationInt8WeightConfig())
    compiled = torch.compile(layer)
    calls: Calls = {
        "torchao, int8": lambda: scaled(codes_MN, weight_NO, scale_M1.reciprocal() * weight_scale),
        "torchao, codes and int8": lambda: compiled(halves_MN),
    }
    for name, call in calls.items():
        require_close(call(), truth_MO, 2e-2, name)
    return calls


def cross_entropies(target_N: Tensor) -> Losses:
    """Losses of hidden states and a head, means over tokens: they hold no logits of all."""
    found: Losses = {}
    if peers := peer("liger-kernel", "liger_kernel.transformers.functional"):
        loss = peers.liger_fused_linear_cross_entropy
        found["liger"] = lambda hidden, head: loss(hidden, head, target_N)
    if peers := peer("cut-cross-entropy", "cut_cross_entropy"):
        cut = peers.linear_cross_entropy
        found["cut-cross-entropy"] = lambda hidden, head: cut(hidden, head, target_N)
    return found


def divergences(taught_ND: Tensor, teacher_VD: Tensor) -> Losses:
    """KL(teacher || student) as a Jensen-Shannon divergence whose weight of the student is 0."""
    if (peers := peer("liger-kernel", "liger_kernel.transformers.functional")) is None:
        return {}
    loss, teacher = peers.liger_fused_linear_jsd, (taught_ND, teacher_VD)
    return {"liger": lambda hidden, head: loss(hidden, head, *teacher, jsd_beta=0.0)}
