from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import wrinklefree.quant.bitlinear  # noqa: F401, it registers operations
from wrinklefree.errors import UserError
from wrinklefree.kernels import capabilities
from wrinklefree.kernels.ternary_linear import products, reference, ternary_linear
from wrinklefree.kernels.ternary_linear.products import MOST_INPUTS, PRODUCTS, chosen_back_end

SHAPES = [(1, 1, 1), (1, 63, 100), (5, 63, 100), (17, 100, 63), (2, 1025, 7), (0, 8, 3)]
Codes = tuple[Tensor, Tensor]


def draw(
    tokens: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32, rows: bool = True
) -> tuple[Codes, Codes]:
    """Codes of activations and of a weight, with positive scales."""
    codes = torch.randint(-127, 128, (tokens, inputs), dtype=torch.int8)
    weight = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8)
    scale = torch.rand(outputs, 1, dtype=dtype) + 0.01 if rows else torch.rand((), dtype=dtype)
    return (codes, torch.rand(tokens, 1, dtype=dtype) * 100 + 1), (weight, scale)


def leaves(activation: Codes, weight: Codes, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the codes are of, as far as the operation is concerned."""
    return (
        torch.empty(activation[0].shape, dtype=dtype, requires_grad=True),
        torch.empty(weight[0].shape, dtype=dtype, requires_grad=True),
    )


@pytest.mark.parametrize("rows", [False, True], ids=["tensor", "row"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_back_end_gives_the_bits_of_the_reference_with_any_threads(
    shape: tuple[int, int, int], rows: bool
) -> None:
    activation, weight = draw(*shape, rows=rows)
    expected = reference.ternary_linear(*activation, *weight)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for back_end in PRODUCTS:
                actual = ternary_linear(
                    *leaves(activation, weight, torch.float32),
                    activation,
                    weight,
                    back_end=back_end,  # pyright: ignore[reportArgumentType]
                )
                assert torch.equal(actual, expected), (back_end, count)
    finally:
        torch.set_num_threads(threads)


def test_the_largest_sum_that_float32_holds_is_exact_and_one_more_is_not_lost() -> None:
    for inputs in (MOST_INPUTS, MOST_INPUTS + 1, MOST_INPUTS + 700):
        codes = torch.full((1, inputs), 127, dtype=torch.int8)
        codes[0, 0] = 126  # an odd sum, which float32 holds below 2^24 only
        weight = torch.ones(1, inputs, dtype=torch.int8)
        for back_end in PRODUCTS:
            sums = products.integer_product(codes, weight, back_end)  # pyright: ignore[reportArgumentType]
            assert sums.item() == 127 * inputs - 1


@pytest.mark.parametrize("rows", [False, True], ids=["tensor", "row"])
def test_gradients_are_straight_through_in_float64(rows: bool) -> None:
    activation, weight = draw(15, 63, 100, torch.float64, rows)
    activation = (activation[0].unflatten(0, (3, 5)), activation[1].unflatten(0, (3, 5)))
    x, w = leaves(activation, weight, torch.float64)
    output = ternary_linear(x, w, activation, weight)
    torch.testing.assert_close(
        output.detach(), (activation[0] / activation[1]) @ (weight[0] * weight[1]).T
    )
    gradient = torch.randn(3, 5, 100, dtype=torch.float64)
    expected = reference.ternary_linear_gradients(gradient, *activation, *weight)
    actual = torch.autograd.grad(output, (x, w), gradient)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("back_end", PRODUCTS)
def test_an_open_autocast_rounds_nothing(back_end: products.BackEnd) -> None:
    activation, weight = draw(64, 96, 48)
    gradient, ends = torch.randn(64, 48), []
    for enabled in (False, True):
        x, w = leaves(activation, weight, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = ternary_linear(
                x, w, activation, weight, dtype=torch.float32, back_end=back_end
            )
            ends.append([output.detach(), *torch.autograd.grad(output, (x, w), gradient)])
    assert all(map(torch.equal, *ends))
    assert torch.equal(ends[1][0], reference.ternary_linear(*activation, *weight))


def test_in_bfloat16_weights_stay_exact_and_activations_are_rounded_as_floats_are() -> None:
    activation, weight = draw(64, 96, 48)
    x, w = leaves(activation, weight, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = ternary_linear(x, w, activation, weight, dtype=torch.bfloat16)
    assert torch.equal(output, reference.ternary_linear(*activation, *weight).bfloat16())
    gradient = torch.randn(64, 48, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):  # nor may an open autocast round codes' scales
        actual = torch.autograd.grad(output, (x, w), gradient)
    double = [t.double() for t in (gradient, activation[1], weight[1])]
    expected = reference.ternary_linear_gradients(
        double[0], activation[0], double[1], weight[0], double[2]
    )
    seen = activation[0].bfloat16() * activation[1].reciprocal().bfloat16()
    expected = expected[0], double[0].T @ seen.double()
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() <= 2**-8.5 * theirs.norm()  # as results are rounded


def test_a_scale_that_is_not_a_number_spoils_its_own_rows_and_columns_only() -> None:
    activation, weight = draw(5, 63, 100)
    activation[1][2], weight[1][7] = float("nan"), float("nan")
    output = ternary_linear(*leaves(activation, weight, torch.float32), activation, weight)
    spoilt = torch.zeros(5, 100, dtype=torch.bool)
    spoilt[2], spoilt[:, 7] = True, True
    assert torch.equal(output.isnan(), spoilt)


@pytest.mark.parametrize("back_end", PRODUCTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_the_operation_is_registered_as_torch_expects(
    per: str, dtype: torch.dtype, back_end: str
) -> None:
    activation, weight = draw(5, 64, 96, rows=per == "row")
    arguments = (*leaves(activation, weight, dtype), *activation, *weight)
    torch.library.opcheck(
        torch.ops.wrinklefree.ternary_linear.default, (*arguments, dtype, back_end)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantization_is_registered_as_torch_expects(dtype: torch.dtype) -> None:
    operations = torch.ops.wrinklefree
    torch.library.opcheck(operations.quantize_activation.default, (torch.randn(3, 7, dtype=dtype),))
    for vectors in (1, 2, 6):
        arguments = (torch.randn(6, 7, dtype=dtype), "least_squares", vectors)
        torch.library.opcheck(operations.ternary_codes.default, arguments)


@pytest.mark.parametrize("back_end", PRODUCTS)
def test_what_multiplied_last_is_on_record(
    back_end: products.BackEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "last_used", None)
    activation, weight = draw(5, 64, 96)
    operands = leaves(activation, weight, torch.float32)
    ternary_linear(*operands, activation, weight, back_end=back_end)
    assert products.last_used == back_end


def test_the_back_end_is_what_is_measured_or_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(products.VARIABLE, raising=False)
    speeds: list[float] = []
    triton = 0.0
    measured: list[float] = []

    def measure(device_type: str) -> dict[str, float]:
        measured.append(speeds[-1])
        return {"int8": speeds[-1], "bfloat16": 1.0, "triton": triton}

    monkeypatch.setattr(capabilities, "measure", measure)
    device = torch.device("cpu")
    for speed, expected in ((4.3, "int8"), (0.1, "float32")):
        speeds.append(speed)
        capabilities.gains.cache_clear()
        capabilities.cache_file().unlink(missing_ok=True)
        assert chosen_back_end(device) == expected
        capabilities.gains.cache_clear()
        assert chosen_back_end(device) == expected  # read from the file
    assert measured == [4.3, 0.1]
    rates = {"int8": 0.5, "bfloat16": 1.0, "triton": 0.0}
    capabilities.cache_file().write_text(json.dumps({"another machine": rates}), encoding="utf-8")
    capabilities.gains.cache_clear()
    assert chosen_back_end(device) == "float32"
    entries = json.loads(capabilities.cache_file().read_text(encoding="utf-8"))
    assert entries.pop("another machine") == rates and len(entries) == 1
    assert [path.name for path in capabilities.cache_file().parent.iterdir()] == ["products.json"]
    measured.pop()
    capabilities.cache_file().write_text("[]", encoding="utf-8")
    capabilities.gains.cache_clear()
    assert chosen_back_end(device) == "float32"  # measured anew
    for speed, triton_speed, expected in (
        (0.1, 0.2, "float32"),
        (0.1, 3.0, "triton"),
        (3.1, 3.0, "int8"),
    ):
        speeds.append(speed)
        triton = triton_speed
        capabilities.cache_file().unlink()
        capabilities.gains.cache_clear()
        assert chosen_back_end(device) == expected
    monkeypatch.setenv(products.VARIABLE, "int8")
    assert chosen_back_end(device) == "int8"
    for name in ("int4", "triton"):  # the second runs on no CPU
        monkeypatch.setenv(products.VARIABLE, name)
        with pytest.raises(UserError, match=f"{name}.*int8 or float32 or triton .triton on CUDA"):
            chosen_back_end(device)
    capabilities.gains.cache_clear()
    page = Path(products.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert f"`{products.VARIABLE}=float32`" in page


def test_a_kind_with_wrong_products_is_not_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = capabilities.measure("cpu")
    assert gains["int8"] > 0 and gains["bfloat16"] > 0
    true = capabilities.int8_product
    monkeypatch.setattr(capabilities, "int8_product", lambda a, b: true(a, b) + 1)
    assert capabilities.measure("cpu")["int8"] == 0


def test_without_a_home_nothing_is_kept_and_all_is_measured(monkeypatch: pytest.MonkeyPatch):
    def nowhere() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(capabilities.Path, "home", nowhere)
    monkeypatch.setattr(capabilities, "measure", lambda device_type: {"int8": 5.0})
    capabilities.gains.cache_clear()
    assert capabilities.gains("cpu") == {"int8": 5.0}
    assert not capabilities.cache_file().parent.exists()
    capabilities.gains.cache_clear()
