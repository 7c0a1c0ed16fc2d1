from __future__ import annotations

import json
import platform
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wrinklefree.errors import UserError
from wrinklefree.kernels.ternary_linear import products
from wrinklefree.tracking import provenance
from wrinklefree.tracking.artifact import Origin, open_artifact, writing_artifact
from wrinklefree.tracking.kept import is_forced, keep, made_already
from wrinklefree.tracking.provenance import (
    library_versions,
    lineage,
    read_provenance,
    record_of,
    write_provenance,
)

RAW, MIXTURE, BASE, STAGE2 = map(
    Path, ("data/raw/code", "data/mixture", "models/base", "models/stage2")
)
OF_NO_BYTES = {
    "accelerate", "dvc", "jinja2", "mlflow", "packaging", "psutil", "pydantic", "pygments",
    "pypi-simple", "pyyaml", "requests", "rich", "ruamel", "snakemake", "tqdm", "urllib3",
    "snakemake-executor-plugin-slurm", "snakemake-interface-logger-plugins",
    "snakemake-interface-report-plugins",
}  # fmt: skip
"""Dependencies that only read settings, show, start or place what is made."""
SOURCE = {"kind": "package", "package": "sympy", "version": "1.14.0", "sha256": "e" * 64}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def origin(stage: str, *inputs: Path, **settings: Any) -> Origin:
    digests = {path.name: open_artifact(path).manifest.digest for path in inputs}
    return Origin(stage, digests, settings)


def make(path: Path, stage: str, *inputs: Path, code: str = "c" * 64, **settings: Any) -> None:
    with writing_artifact(path, origin(stage, *inputs, **settings)) as (folder, _):
        (folder / "a.txt").write_text(stage)
    artifacts = {given.name: open_artifact(given) for given in inputs}
    versions = library_versions()
    write_provenance(path, artifacts, code=code, versions=versions, mlflow_run="run", seconds=1.25)


def make_all() -> None:
    make(RAW, "fetch", sources={"code": SOURCE})
    make(MIXTURE, "mixture", RAW)
    make(BASE, "base", MIXTURE, base={"source": {"kind": "scratch"}})
    make(STAGE2, "stage2", BASE, MIXTURE)


def test_the_record_tells_how_and_changes_no_manifest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "last_used", "int8")
    commit = SimpleNamespace(hash="f" * 40, dirty=True)
    monkeypatch.setattr(provenance, "present_commit", lambda: commit)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    make(RAW, "fetch", sources={})
    before = open_artifact(RAW).manifest.digest
    make(RAW, "fetch", sources={}, code="d" * 64)
    assert open_artifact(RAW).manifest.digest == before
    record = read_provenance(record_of(RAW), before)
    assert record and (record.code, record.mlflow_run, record.seconds) == ("d" * 64, "run", 1.2)
    assert record.ternary_products == "int8"
    assert (record.commit, record.uncommitted, record.threads) == ("f" * 40, True, 7)
    assert record.versions["python"] and re.match(r"\d{4}-\d\d-\d\dT", record.finished)
    assert read_provenance(record_of(RAW), "another") is None


def test_the_versions_are_those_of_all_that_can_change_bytes():
    """What the project itself asks for is recorded, or known to be of no such kind."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[^a-z0-9-]", one.lower())[0] for one in project["dependencies"]}
    recorded = set(library_versions())
    assert wanted - recorded == OF_NO_BYTES
    assert library_versions()["python"] == ".".join(platform.python_version_tuple()[:2])


def test_the_lineage_is_the_whole_chain_with_digests():
    make_all()
    digest = {path: open_artifact(path).manifest.digest[:12] for path in (RAW, MIXTURE, BASE)}
    lines = lineage(STAGE2).splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"models/stage2 {open_artifact(STAGE2).manifest.digest[:12]}",
        f"├─ base: models/base {digest[BASE]}",
        "│    from scratch",
        f"│  └─ mixture: data/mixture {digest[MIXTURE]}",
        f"│     └─ code: data/raw/code {digest[RAW]}",
        f"│          from package sympy 1.14.0 sha256 {'e' * 12}",
        f"└─ mixture: data/mixture {digest[MIXTURE]}",
    ]
    assert "(above)" in lines[-1] and "code cccccccccccc" in lines[0]


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        (
            "teachers",
            {"teachers": {"large": {"source": {"kind": "hub", "repository": "a/b"}}, "own": {}}},
            ["from hub a/b"],
        ),
        ("clean", {"cleaning": {"references": {"test": SOURCE}}}, ["from package sympy 1.14.0"]),
        ("clean", {"cleaning": {"engine": {"kind": "local"}}}, []),
        ("tokenizer", {"tokenizer": {"kind": "base"}, "base": {"source": SOURCE}}, ["from pack"]),
        ("tokenizer", {"tokenizer": {"kind": "bpe"}, "base": {"source": SOURCE}}, []),
        ("finetune", {"finetune": {"train": {"path": "a.jsonl"}}}, ["from a.jsonl"]),
    ],
)
def test_the_lineage_has_whatever_a_stage_brought(stage: str, settings: dict, said: list[str]):
    make(STAGE2, stage, **settings)
    lines = [line.strip() for line in lineage(STAGE2).splitlines()[1:]]
    assert len(lines) == len(said)
    assert all(line.startswith(start) for line, start in zip(lines, said, strict=True))


def test_the_lineage_says_what_is_no_longer_what_was_read():
    make_all()
    read = open_artifact(MIXTURE).manifest.digest[:12]
    make(MIXTURE, "mixture", RAW, weights=1)
    shutil.rmtree(RAW)
    now = open_artifact(MIXTURE).manifest.digest[:12]
    text = lineage(STAGE2)
    assert f"data/mixture {read}, another one now: {now}" in text
    assert "data/raw/code" in text and "no longer there" in text


def test_without_a_record_the_lineage_ends_and_says_so():
    make(RAW, "fetch", sources={"code": SOURCE})
    shutil.rmtree("provenance")
    assert "no record of provenance" in lineage(RAW)
    with pytest.raises(UserError, match="not a finished artifact"):
        lineage(Path("models"))


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000])
def test_a_record_that_is_none_is_a_users_error(content: str):
    make(RAW, "fetch", sources={})
    Path("provenance/data/raw/code.json").write_text(content)
    with pytest.raises(UserError, match="no record of provenance"):
        lineage(RAW)


CODE, VERSIONS = "c" * 64, library_versions()


@pytest.mark.parametrize(
    ("settings", "code", "versions", "expected"),
    [
        ({"steps": 3}, CODE, VERSIONS, True),
        ({"steps": 4}, CODE, VERSIONS, False),
        ({"steps": 3}, "d" * 64, VERSIONS, False),
        ({"steps": 3}, CODE, VERSIONS | {"torch": "1"}, False),
    ],
)
def test_the_kept_copy_is_what_a_stage_would_make_if_all_is_the_same(
    settings: dict[str, Any], code: str, versions: dict[str, str], expected: bool
):
    make(MIXTURE, "mixture")
    make(STAGE2, "stage2", MIXTURE, steps=3)
    keep(STAGE2)
    wanted = origin("stage2", MIXTURE, **settings)
    assert not made_already(STAGE2, wanted, code, versions), "it stands"
    shutil.rmtree(STAGE2)
    Path("provenance/models/stage2.json").unlink()
    assert made_already(STAGE2, wanted, code, versions) == expected
    make(MIXTURE, "mixture", seed=2)
    assert not made_already(STAGE2, origin("stage2", MIXTURE, steps=3), CODE, VERSIONS)


def test_what_was_asked_for_by_name_is_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WRINKLEFREE_FORCED", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert is_forced("stage2", STAGE2), "by hand"
    monkeypatch.setenv("DVC_STAGE", "stage2")
    assert not is_forced("stage2", STAGE2), "by a DVC that was not forced"
    for forced, expected in {
        "": False,
        "base mixture": False,
        "stage2 base": True,
        "models/stage2/manifest.json": True,
    }.items():
        monkeypatch.setenv("WRINKLEFREE_FORCED", forced)
        assert is_forced("stage2", STAGE2) == expected, forced
    monkeypatch.setenv("WRINKLEFREE_FORCED", "fetch_source")
    assert is_forced("fetch", RAW) and not is_forced("clean", Path("data/clean/code"))


def test_a_record_is_json_that_other_tools_read():
    make(RAW, "fetch", sources={})
    content = json.loads(Path("provenance/data/raw/code.json").read_text())
    assert content["digest"] == open_artifact(RAW).manifest.digest
