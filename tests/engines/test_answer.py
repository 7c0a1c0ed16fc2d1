from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wrinklefree.engines.answer import answer_of_run, is_whole
from wrinklefree.engines.what_next import what_next
from wrinklefree.tracking.artifact import Origin, writing_artifact

PRICE = {"distill_ar": {"mean": 0.0833, "low": 0.0654, "high": 0.1012}}


EVALUATION = {
    "models": {
        "base": {"loss": 3.4312, "loss_standard_error": 0.0787},
        "naive": {"loss": 4.1, "loss_standard_error": 0.075},
        "distill_ar": {"loss": 3.4, "loss_standard_error": None},
    },
    "cost": {
        "base": {"bytes_float16": 8_400_000, "picojoules": 6.6e6},
        "distill_ar": {"bytes_float16": 2_100_000, "picojoules": 2e6},
    },
}


def make(folder: str, facts: dict[str, Any], **inputs: str) -> None:
    with writing_artifact(Path(folder), Origin(folder, inputs, {})) as (made, written):
        written |= facts
        if folder == "results":
            (made / "evaluation.json").write_text(json.dumps(EVALUATION))


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run with results, in the current folder."""
    monkeypatch.chdir(tmp_path)
    make("results", {}, distill_ar="a" * 64)


def test_the_price_is_that_of_the_student_of_the_results():
    make("research/control", PRICE, distill_ar="a" * 64)
    losses, saved, price = answer_of_run()
    assert "3.431 ± 0.079 dense, 4.100 ± 0.075 rounded to three values, 3.400 after" in losses
    assert "8.4 MB in float16 become 2.1 MB, a factor of 4.0;" in saved
    assert "3.3 times less energy, by an estimate" in saved
    assert "cost +0.083 nats (+0.065 to +0.101)" in price
    assert ": +0.042 for each halving of its size" in price
    make("research/control", PRICE, distill_ar="b" * 64)
    *_, price = answer_of_run()
    assert "cost +" not in price and "snakemake control" in price


def test_sizes_are_those_of_the_files_that_were_written():
    facts = {"parameters": 4200704, "ternary_parameters": 3145728}
    facts |= {"float32_bytes": 16807840, "exported_bytes": 5014296}
    make("models/export", {})
    assert len(answer_of_run()) == 3, "nothing was exported"
    make("models/export", facts)
    assert answer_of_run()[-1] == (
        "Of 4,200,704 parameters 75% are ternary: 16.8 MB in float32, 5.0 for transformers."
    )
    make("models/export", facts | {"gguf": {"TQ2_0": {"bytes": 3065888}, "texts": 9}})
    assert answer_of_run()[-1].endswith("5.0 for transformers, 3.1 as TQ2_0 for llama.cpp.")
    make("models/export", facts | {"gguf": {}, "i2_s": {"bytes": 3065888}})
    assert answer_of_run()[-1].endswith("transformers, 3.1 as I2_S for bitnet.cpp.")


def test_a_run_is_whole_when_results_and_export_are_of_one_model():
    assert not is_whole()
    make("models/export", {}, model="b" * 64)
    assert not is_whole(), "one of them is of an earlier run"
    make("models/export", {}, model="a" * 64)
    assert is_whole()


def test_a_run_ends_with_its_answer_within_80_columns():
    lines = what_next(0.0)
    assert lines[0].startswith("Held-out loss in nats per token")
    assert max(map(len, lines)) <= 80


def test_without_results_there_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path / "results")
    assert answer_of_run() == []
