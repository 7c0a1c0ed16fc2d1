"""A model on a GPU goes through Triton kernels, and gives what it gives on a CPU."""

from __future__ import annotations

import json

from interpreted import output_of


def test_models_give_with_kernels_what_they_give_without() -> None:
    compared: dict[str, dict[str, bool]] = json.loads(
        output_of("compare_models_with_triton.py", on_gpu=False)
    )
    assert len(compared) == 9 and all(compared.values())
    wrong = [f"{of}: {case}" for of, cases in compared.items() for case in cases if not cases[case]]
    assert wrong == []
