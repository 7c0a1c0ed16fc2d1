"""What a run lost and saved, in a few sentences: for the report's first page and the terminal."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import Manifest, read_manifest

_RESULTS = Path("results")
_EXPORT = Path("models/export")
_CONTROL = Path("research/control")
_STUDENT = "distill_ar"


def answer_of_run() -> list[str]:
    """Sentences on the losses, what was saved, the price and the sizes of the artifacts in the
    current folder.

    Each is there if what it is of is there. The price is that of the student of the results, or of
    none: another one's control says nothing.
    """
    sentences = []
    if results := _manifest(_RESULTS):
        found = json.loads((_RESULTS / "evaluation.json").read_bytes())
        base, naive, student = (_loss(found["models"][n]) for n in ("base", "naive", _STUDENT))
        sentences.append(
            f"Held-out loss in nats per token: {base} dense, {naive} rounded to three values,"
            f" {student} after training (± standard error)."
        )
        dense, ternary = (found["cost"][name] for name in ("base", _STUDENT))
        smaller = dense["bytes_float16"] / ternary["bytes_float16"]
        energy = dense["picojoules"] / ternary["picojoules"]
        sentences.append(
            f"Saved: {dense['bytes_float16'] / 1e6:,.1f} MB in float16 become"
            f" {ternary['bytes_float16'] / 1e6:,.1f} MB, a factor of {smaller:.1f}; the arithmetic"
            f" of a token takes {energy:.1f} times less energy, by an estimate"
            " without memory."
        )
        control = _manifest(_CONTROL)
        if control and control.inputs[_STUDENT] == results.inputs[_STUDENT]:
            price = control.facts[_STUDENT]
            sentences.append(
                f"Ternary weights cost {price['mean']:+.3f} nats ({price['low']:+.3f} to"
                f" {price['high']:+.3f}) against the dense model trained as long:"
                f" {price['mean'] / math.log2(smaller):+.3f} for each halving of its size."
            )
        else:
            sentences.append(
                "A part of the gain is more training: snakemake control says what ternary weights"
                " cost against a dense model trained as long."
            )
    if (student := _manifest(_EXPORT)) and student.facts:  # else nothing was to be exported
        sentences.append(_sizes(student.facts))
    return sentences


def is_whole() -> bool:
    """Whether results and the exported student are here, and of one model."""
    results, student = _manifest(_RESULTS), _manifest(_EXPORT)
    if not results or not student:
        return False
    return results.inputs[_STUDENT] == student.inputs["model"]


def _loss(score: dict[str, Any]) -> str:
    error = score["loss_standard_error"]
    return f"{score['loss']:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def _sizes(facts: dict[str, Any]) -> str:
    files = facts.get("gguf", {})
    sizes = [f"{facts['float32_bytes'] / 1e6:,.1f} MB in float32"]
    sizes.append(f"{facts['exported_bytes'] / 1e6:,.1f} for transformers")
    sizes += [
        f"{one['bytes'] / 1e6:,.1f} as {name} for llama.cpp"
        for name, one in files.items()
        if isinstance(one, dict)
    ]
    if "i2_s" in facts:
        sizes.append(f"{facts['i2_s']['bytes'] / 1e6:,.1f} as I2_S for bitnet.cpp")
    share = facts["ternary_parameters"] / facts["parameters"]
    return f"Of {facts['parameters']:,} parameters {share:.0%} are ternary: {', '.join(sizes)}."


def _manifest(folder: Path) -> Manifest | None:
    """None where there is none, or one of another version, which says nothing of this run."""
    with contextlib.suppress(UserError):
        return read_manifest(folder)
    return None
