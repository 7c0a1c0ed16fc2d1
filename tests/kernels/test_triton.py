from __future__ import annotations

import json

import pytest
from interpreted import output_of

OPERATIONS = (
    "quantize_activation",
    "quantize_weights",
    "subln_quantize",
    "ternary_matmul",
    "packed_matmul",
    "quantizing",
)


@pytest.fixture(scope="module")
def compared() -> dict[str, dict[str, bool]]:
    return json.loads(output_of("compare_with_triton.py"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_triton_kernel_gives_what_the_reference_gives(
    operation: str, compared: dict[str, dict[str, bool]]
) -> None:
    cases = compared[operation]
    assert len(cases) >= 8
    assert [case for case, same in cases.items() if not same] == []


def test_every_kernel_is_compared(compared: dict[str, dict[str, bool]]) -> None:
    assert set(compared) == set(OPERATIONS)
