from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wrinklefree.tracking.artifact import Origin, writing_artifact

PROJECT = Path(__file__).parents[1]


def wrinklefree(*arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wrinklefree.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_default_settings_are_valid():
    result = wrinklefree("check")
    assert (result.returncode, result.stdout) == (0, "params.yaml: all settings are valid\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "qwen5"), "error: no preset qwen5; presets in params/:"),
        (("verify", "models/none"), "error: models/none: not a finished artifact"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: tuple[str, ...], message: str):
    result = wrinklefree(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_verify_finds_an_edit(tmp_path: Path):
    with writing_artifact(tmp_path / "one", Origin("fetch", {}, {}, "", {})) as (folder, _):
        (folder / "a.txt").write_text("text")
    assert wrinklefree("verify", str(tmp_path / "one")).returncode == 0
    (tmp_path / "one" / "a.txt").write_text("tixt")
    assert "a.txt: content differs" in wrinklefree("verify", str(tmp_path / "one")).stderr


@pytest.mark.parametrize("module", ["torch", "mlflow", "transformers", "pyarrow"])
def test_settings_and_commands_import_nothing_heavy(module: str):
    code = (
        "import sys, wrinklefree.cli, wrinklefree.config.load, wrinklefree.tracking.stage;"
        f"sys.exit({module!r} in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "src")}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )
