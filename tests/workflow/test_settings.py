"""Settings that are wrong are refused in one message, whoever reads them first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from workspace import ENVIRONMENT, PROJECT, copy_project

pytestmark = pytest.mark.end_to_end

BOMB = "\nxa: &xa [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"x{name}: &x{name} [{', '.join([f'*x{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DRY = ("snakemake", "stage2", "--dry-run")


def refused(folder: Path, *command: str) -> str:
    """What a command says that has to fail within seconds."""
    result = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=30
    )
    assert result.returncode != 0
    text = result.stdout + result.stderr
    assert "Traceback" not in text and len(text.splitlines()) < 6
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy_project(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "params.yaml: expected a mapping of settings (key: value), found nothing"),
        (b"seed: 1\nseed: 2\n", "params.yaml: line 2: key 'seed' appears twice"),
        (BOMB.encode(), "more than 100,000 values, with aliases"),
        (None, "params.yaml: no such file"),
    ],
    ids=["empty", "twice", "aliases", "absent"],
)
def test_snakemake_says_what_is_wrong_with_params(
    folder: Path, content: bytes | None, expected: str
):
    (folder / "params.yaml").unlink()
    if content is not None:
        (folder / "params.yaml").write_bytes(content)
    said = refused(folder, *DRY)
    assert "\nerror: params.yaml: " in said and expected in said


def test_a_template_in_params_is_not_run(folder: Path):
    with (folder / "params.yaml").open("a") as file:
        file.write('__use_yte__: true\n? \'?open("ran", "w").close()\'\n: {a: 1}\n')
    assert "__use_yte__: unknown setting" in refused(folder, *DRY)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("stage2: {steps: 0100}\n", "line 1: stage2.steps: '0100' without quotes"),
        (BOMB, "more than 100,000 values, with aliases"),
        ("stage2: {steps: 1}\n", "stage2: schedule.warmup_steps is 20 and steps 1"),
    ],
    ids=["octal", "aliases", "invalid"],
)
def test_snakemake_and_check_say_what_is_wrong_with_a_preset(
    folder: Path, content: str, expected: str
):
    (folder / "params" / "own.yaml").write_text(content)
    for command in ((*DRY, "--configfile", "params/own.yaml"), ("wrinklefree", "check", "own")):
        said = refused(folder, *command)
        assert "params/own.yaml" in said and expected in said


def test_a_target_that_snakemake_took_for_a_file_is_told_to_come_first(folder: Path):
    (folder / "manifest.json").write_text('{"stage": "x"}')
    said = refused(folder, "snakemake", "-n", "--configfile", "params/tiny.yaml", "manifest.json")
    assert "stage: unknown setting" in said and "Targets come first" in said


def test_what_comes_by_config_is_checked_as_well(folder: Path):
    said = refused(folder, *DRY, "--config", "seed=x")
    assert (
        "error: params.yaml with --config: 1 problem" in said
        and "seed: input should be a valid" in said
    )


def test_a_stage_refuses_what_an_engine_let_pass(folder: Path):
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("steps: 200\n", "steps: 0200\n"))
    script = str(PROJECT / "workflow" / "scripts" / "mixture.py")
    options = [f"--{name}=data/{name}" for name in ("tokenizer", "tokens", "output")]
    said = refused(folder, sys.executable, "-P", script, "--settings=params.yaml", *options)
    assert "stage2.steps: '0200' without quotes is the number 128" in said
