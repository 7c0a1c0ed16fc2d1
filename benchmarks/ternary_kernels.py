"""Triton kernels of ternary layers on a GPU, against torch and the floor.

Shapes: M tokens, N inputs, O outputs of a layer; of three models, ``down_proj``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import _peers
import torch
from _timing import (
    H100_BYTES_PER_SECOND,
    NOT_MEASURED,
    print_header,
    require,
    require_close,
    time_on_gpu,
)
from torch import Tensor, nn

from wrinklefree.kernels.quantize_activation import reference as activations
from wrinklefree.kernels.quantize_weights import reference as weights
from wrinklefree.kernels.subln_quantize import reference as subln
from wrinklefree.kernels.ternary_matmul import reference as products
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.packing import pack_ternary

MODELS = {"SmolLM2-135M": (1536, 576), "Qwen3-0.6B": (3072, 1024), "Qwen3-4B": (9728, 2560)}
H100_INT8 = 1979e12
TOKENS, FEW, EPSILON = 4096, (1, 8, 32), 1e-6
PACKED = ((2560, 2560), (3200, 20480))
"""Inputs and outputs of the layers that others report products of packed weights at."""
COPY = "copy of as many bytes"


def floors(inputs: int, outputs: int) -> dict[str, float]:
    """Least microseconds on an H100, of bytes or of operations, whichever takes longer."""
    elements, weight = TOKENS * inputs, inputs * outputs
    product_bytes = elements + weight + 2 * TOKENS * outputs
    seconds = {
        "activation codes, bfloat16": elements * 3 / H100_BYTES_PER_SECOND,
        "SubLN and codes, bfloat16": elements * 3 / H100_BYTES_PER_SECOND,
        "its gradients": elements * 6 / H100_BYTES_PER_SECOND,
        "absmean codes of a weight": weight * 9 / H100_BYTES_PER_SECOND,
        "least-squares codes of a weight": weight * 49 / H100_BYTES_PER_SECOND,
        f"product of {TOKENS} tokens": max(
            2 * TOKENS * weight / H100_INT8, product_bytes / H100_BYTES_PER_SECOND
        ),
        "packed product of one token": weight / 4 / H100_BYTES_PER_SECOND,
        "and its codes, bfloat16": (weight / 4 + 2 * inputs) / H100_BYTES_PER_SECOND,
    }
    return {name: 1e6 * value for name, value in seconds.items()}


def compared(
    title: str,
    reference: Callable[..., Any],
    triton: Callable[..., Any],
    *arguments: Any,
    peers: _peers.Calls | None = None,
) -> None:
    calls = {"torch": reference, "compiled": torch.compile(reference), "triton": triton}
    mine = {name: lambda call=call: call(*arguments) for name, call in calls.items()}
    time_on_gpu(title, mine | (peers or {}), "compiled", COPY)


def copy_of(numbers: int, moved: int) -> _peers.Calls:
    """A copy that moves ``moved`` bytes for each of so many numbers, half of them read."""
    source = torch.empty(numbers * moved // 2, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    return {COPY: lambda: target.copy_(source)}


def time_activations(activation_MN: Tensor) -> None:
    from wrinklefree.kernels.quantize_activation import triton as activations_triton
    from wrinklefree.kernels.subln_quantize import triton as subln_triton

    mine = activations_triton.quantize_activation(activation_MN)
    truth = activations.quantize_activation(activation_MN)
    require(all(map(torch.equal, mine, truth)), "codes and scales of the reference")
    shape = f"{tuple(activation_MN.shape)} {activation_MN.dtype}"
    compared(
        f"activation codes {shape}",
        activations.quantize_activation,
        activations_triton.quantize_activation,
        activation_MN,
        peers=_peers.activation_codes(activation_MN, truth[0] / truth[1])
        | copy_of(activation_MN.numel(), 3),
    )
    gain_N = 1 + 0.1 * torch.randn(activation_MN.shape[-1], device="cuda")
    operands = (activation_MN, gain_N, EPSILON)
    codes, scale, inverse = subln_triton.subln_quantize(*operands)
    codes_truth, scale_truth, inverse_truth = subln.subln_quantize(*operands)
    require_close(scale, scale_truth, 2**-7, "scale, within a unit of bfloat16,")
    require_close(inverse, inverse_truth, 1e-6, "1 / RMS")
    require(bool((codes.int() - codes_truth.int()).abs().max() <= 1), "codes within one")
    compared(
        f"SubLN and codes {shape}",
        subln.subln_quantize,
        subln_triton.subln_quantize,
        *operands,
        peers=_peers.norm(*operands) | copy_of(activation_MN.numel(), 3),
    )
    gradients = (torch.randn_like(activation_MN), activation_MN, gain_N, inverse)
    both = subln_triton.subln_gradients(*gradients), subln.subln_gradients(*gradients)
    for name, actual, expected in zip(("input", "gain"), *both, strict=True):
        require_close(actual, expected, 4e-3, f"gradient of the {name}")
    compared(
        f"its gradients {shape}",
        subln.subln_gradients,
        subln_triton.subln_gradients,
        *gradients,
        peers=copy_of(activation_MN.numel(), 6),
    )


def time_weights(layers: list[Tensor]) -> None:
    from wrinklefree.kernels.quantize_weights import triton

    for scale in ("absmean", "least_squares"):
        both = triton.quantize_weights(layers, scale), weights.quantize_weights(layers, scale)
        same = (
            torch.equal(a, b)
            for pairs in zip(*both, strict=True)
            for a, b in zip(*pairs, strict=True)
        )
        require(all(same), f"codes and scales of the reference ({scale})")
        calls = {"torch": weights.quantize_weights, "triton": triton.quantize_weights}
        calls["compiled"] = torch.compile(weights.quantize_weights)
        mine = {name: lambda call=call, s=scale: call(layers, s) for name, call in calls.items()}
        codes_ON, weight_scale = both[0][0]
        peers = _peers.weight_codes(layers, codes_ON * weight_scale) if scale == "absmean" else {}
        title = f"{scale} codes of {len(layers)} weights {tuple(layers[0].shape)}"
        time_on_gpu(title, mine | peers, "torch")


def time_layer(tokens: int, inputs: int, outputs: int) -> None:
    """Both passes of a layer whose weight has just changed, in bfloat16."""
    plain = nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=torch.bfloat16)
    ours = BitLinear.from_linear(plain)
    layers: dict[str, Any] = {"ours": ours, "ours, compiled": torch.compile(ours)}
    if peers := _peers.peer("onebitllms", "onebitllms"):
        layers["onebitllms"] = peers.BitNetLinear(inputs, outputs)
        layers["onebitllms"].weight = nn.Parameter(plain.weight.detach().clone())
    start = torch.randn(1, tokens, inputs, device="cuda", dtype=torch.bfloat16)

    def update(layer: nn.Module) -> tuple[Tensor, Tensor]:
        activation, weight = start.clone().requires_grad_(), layer.get_parameter("weight")
        with torch.no_grad():
            weight.mul_(1.0)
        output = layer(activation)
        return output, torch.autograd.grad(output.sum(), [activation, weight])[0]

    truth = update(ours)
    for layer, module in layers.items():
        for name, mine, other in zip(("output", "gradient"), truth, update(module), strict=True):
            # onebitllms rounds x * s and w / s to bfloat16 before they become codes.
            require_close(other, mine, 0.1, f"{name} of {layer}")
    # No peer, but what a ternary layer is to be cheaper than.
    layers["dense"] = plain
    calls = {name: lambda layer=layer: update(layer) for name, layer in layers.items()}
    time_on_gpu(f"a layer {inputs} -> {outputs}, {tokens} tokens, both passes", calls, "dense")


def time_products(tokens: int, inputs: int, outputs: int) -> None:
    from wrinklefree.kernels.packed_matmul.triton import packed_matmul
    from wrinklefree.kernels.quantize_activation.triton import quantize_activation
    from wrinklefree.kernels.ternary_matmul.triton import ternary_matmul

    weight_ON = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8, device="cuda")
    packed_QN, dense_ON = pack_ternary(weight_ON), weight_ON.bfloat16()
    halves_MN = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
    codes, scale = activations.quantize_activation(halves_MN)
    rest = (torch.tensor(0.02, device="cuda"), torch.bfloat16)
    calls: dict[str, Callable[[], Tensor]] = {
        "triton, int8": lambda: ternary_matmul(codes, scale, weight_ON, *rest),
        "triton, packed": lambda: packed_matmul(codes, scale, packed_QN, *rest),
        "codes, then int8": lambda: ternary_matmul(
            *quantize_activation(halves_MN), weight_ON, *rest
        ),
        "codes inside int8": lambda: ternary_matmul(halves_MN, None, weight_ON, *rest),
        "codes, then packed": lambda: packed_matmul(
            *quantize_activation(halves_MN), packed_QN, *rest
        ),
        "codes inside packed": lambda: packed_matmul(halves_MN, None, packed_QN, *rest),
    }

    def of_torch(codes: Tensor, scale: Tensor) -> Tensor:
        sums = torch._int_mm(codes, weight_ON.T)  # pyright: ignore[reportPrivateImportUsage]
        return products.scaled(sums, scale, rest[0]).bfloat16()

    if tokens > 16:  # CUDA's own product takes no fewer
        compiled = torch.compile(of_torch)
        calls["int8 of torch"] = lambda: of_torch(codes, scale)
        calls["int8 of torch, compiled"] = lambda: compiled(codes, scale)
    truth = products.ternary_matmul(codes, scale, weight_ON, *rest)
    for name, call in calls.items():
        require(torch.equal(call(), truth), f"the bits of the reference, {name}")
    if tokens > 16:
        calls |= _peers.products(halves_MN, codes, scale, weight_ON, rest[0], truth)
    calls = {"bfloat16 of torch": lambda: halves_MN @ dense_ON.T, **calls}
    time_on_gpu(f"{tokens} tokens through {inputs} -> {outputs}", calls, "bfloat16 of torch")


def main() -> None:
    print_header(f"Kernels of ternary layers, {TOKENS} tokens")
    for model, (inputs, outputs) in MODELS.items():
        print(f"\n{model}: {inputs} -> {outputs}, floor on an H100 in microseconds")
        for name, microseconds in floors(inputs, outputs).items():
            print(f"  {name:<36}{microseconds:10.2f}")
        if torch.cuda.is_available():
            time_activations(torch.randn(TOKENS, inputs, device="cuda", dtype=torch.bfloat16))
            time_weights([torch.randn(outputs, inputs, device="cuda") for _ in range(28)])
            for tokens in (*FEW, TOKENS):
                time_products(tokens, inputs, outputs)
            time_layer(TOKENS, inputs, outputs)
    for inputs, outputs in PACKED:
        floor = floors(inputs, outputs)["packed product of one token"]
        print(f"\n{inputs} -> {outputs}: a packed product of one token, floor {floor:.2f} µs")
        if torch.cuda.is_available():
            time_products(1, inputs, outputs)
    if not torch.cuda.is_available():
        print(f"\n{NOT_MEASURED}")


if __name__ == "__main__":
    main()
