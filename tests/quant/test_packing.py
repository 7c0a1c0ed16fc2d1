from __future__ import annotations

import pytest
import torch

from wrinklefree.quant.packing import pack_ternary, unpack_ternary


def random_codes(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-1, 2, (rows, columns), dtype=torch.int8)


@pytest.mark.parametrize(("rows", "columns"), [(4, 1), (100, 63), (64, 128)])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # raised by torch itself
def test_layout_is_that_of_transformers(rows: int, columns: int) -> None:
    from transformers.integrations.bitnet import pack_weights, unpack_weights

    codes = random_codes(rows, columns)
    packed = pack_ternary(codes)
    assert packed.dtype == torch.uint8
    # Its packing adds 1 to its argument in place.
    assert torch.equal(packed, pack_weights(codes.clone()))
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(unpack_weights(packed, dtype=torch.int8), codes)


def test_bits_of_a_byte_are_a_quarter_of_the_rows_apart() -> None:
    codes = random_codes(20, 7)
    packed = pack_ternary(codes)
    for row in range(20):
        stored = (packed[row % 5] >> (2 * (row // 5))) & 3
        assert torch.equal(stored.to(torch.int8) - 1, codes[row])


def test_unpacking_is_the_inverse_and_packing_leaves_its_input() -> None:
    codes = random_codes(100, 63)
    before = codes.clone()
    assert torch.equal(unpack_ternary(pack_ternary(codes)), before)
    assert torch.equal(codes, before)


@pytest.mark.parametrize(
    "codes",
    [random_codes(63, 4), random_codes(4, 4)[0], torch.full((4, 4), 2, dtype=torch.int8)],
    ids=["rows", "one-dimensional", "not ternary"],
)
def test_what_cannot_be_packed_is_refused(codes: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="codes"):
        pack_ternary(codes)
