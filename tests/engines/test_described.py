from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wrinklefree.engines.current import check_current
from wrinklefree.engines.described import settings_of_run
from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import Origin, open_artifact, read_manifest, writing_artifact
from wrinklefree.tracking.provenance import write_provenance

RUN: dict[str, Any] = {
    "seed": 1,
    "sources": {"books": {"kind": "files"}},
    "mixture": {"weights": {"prose": 1.0}},
    "distill": {"ar": {"steps": 4}, "dlm": {"steps": 5}},
    "evaluate": {"prompts": ["a"]},
}
PRESENT: dict[str, Any] = {
    "seed": 2,
    "sources": {"code": {"kind": "files"}},
    "mixture": {"weights": {"code": 1.0}},
    "distill": {"ar": {"steps": 400}, "dlm": {"steps": 500}},
    "evaluate": {"prompts": ["b"]},
    "export": {"linear_class": "bitlinear"},
}


def make(folder: str, stage: str, settings: dict[str, Any], **inputs: str) -> None:
    digests = {name: read_manifest(Path(path)).digest for name, path in inputs.items()}
    with writing_artifact(Path(folder), Origin(stage, digests, settings)):
        pass


def section(*names: str, **changes: Any) -> dict[str, Any]:
    return {name: RUN[name] for name in names} | changes


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of few stages, in the current folder."""
    monkeypatch.chdir(tmp_path)
    make("data/tokens/unused", "tokenize", {"sources": {"unused": {}}})
    make("data/mixture", "mixture", section("sources", "mixture"))
    for student in ("ar", "dlm"):
        settings = section("seed", distill={student: RUN["distill"][student]})
        make(f"models/distill/{student}", "distill", settings, mixture="data/mixture")
    evaluate()


def evaluate() -> None:
    inputs = {"distill_ar": "models/distill/ar", "distill_dlm": "models/distill/dlm"}
    make("results", "evaluate", section("seed", "evaluate"), **inputs)


def test_settings_are_those_that_the_results_were_made_with():
    assert settings_of_run(PRESENT) == RUN | {"export": PRESENT["export"]}
    assert PRESENT["seed"] == 2, "what was given is left alone"


def test_results_of_a_model_that_is_no_longer_there_describe_no_run():
    settings = section("seed", distill={"ar": {"steps": 9}})
    make("models/distill/ar", "distill", settings, mixture="data/mixture")
    with pytest.raises(UserError, match="results was made from another distill_ar than"):
        settings_of_run(PRESENT)


def test_artifacts_of_two_seeds_are_no_run():
    settings = section(seed=7, distill={"ar": RUN["distill"]["ar"]})
    make("models/distill/ar", "distill", settings, mixture="data/mixture")
    evaluate()
    with pytest.raises(UserError, match="was made with other settings than other artifacts"):
        settings_of_run(PRESENT)


def test_without_results_it_is_said_that_there_is_nothing_to_describe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(UserError, match="no results to describe yet; run"):
        settings_of_run(PRESENT)


def test_what_is_of_a_source_that_was_removed_is_to_be_deleted():
    folder = Path("data/tokens/unused")
    artifact = open_artifact(folder)
    write_provenance(folder, {}, code="c", versions={}, mlflow_run="", seconds=1.0)
    with pytest.raises(
        UserError, match=f"{folder}: params.yaml no longer has it .*delete {folder}"
    ):
        check_current(artifact, PRESENT)
