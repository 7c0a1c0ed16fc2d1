from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from wrinklefree import cli
from wrinklefree.downloads.local_files import digest_of_files
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
        (("check", "tiny", "stage2"), "error: stage2 is a stage and no preset; name targets first"),
        (("check", "\x1b[31m"), r"error: no preset '\x1b[31m'; presets in params/:"),
        (("check", "params"), "error: params: is a folder; give the path of a params file"),
        (("preset", "qwen5"), "error: no preset qwen5; presets in params/:"),
        (("verify", "models/none"), "error: models/none: not a finished artifact"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: tuple[str, ...], message: str):
    result = wrinklefree(*arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [("check",), ("preset", "tiny"), ("recipe", "proposed")])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; give the path of a params file or preset, or go to the folder of"),
        (b"", "expected a mapping of settings (key: value), found nothing"),
        (b"stage2: {steps: 0100}", "line 1: stage2.steps: '0100' without quotes is the number 64"),
        (b"a: caf\xe9", "line 1: the text is not UTF-8"),
    ],
    ids=["absent", "empty", "octal", "latin-1"],
)
def test_every_command_on_settings_says_in_one_line_what_is_wrong_with_the_file(
    tmp_path: Path, command: tuple[str, ...], content: bytes | None, message: str
):
    (tmp_path / "params").mkdir()
    for name in ("params/tiny.yaml", "catalog.yaml"):
        shutil.copy(PROJECT / name, tmp_path / name)
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content)
    result = wrinklefree(*command, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: params.yaml: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_a_warning_is_one_line_and_no_failure(tmp_path: Path):
    preset = tmp_path / "fast.yaml"
    preset.write_text("distill: {ar: {optimizer: {muon: {lr: 0.5}}}}\n")
    result = wrinklefree("check", str(preset))
    assert result.returncode == 0
    assert result.stdout == f"params.yaml with {preset}: all settings are valid\n"
    assert result.stderr == (
        f"warning: params.yaml with {preset}: lr 0.5 is outside 5e-05..0.01, where Muon with scale"
        " match_rms is known to train\n"
    )


def test_several_presets_are_checked_as_snakemake_lays_them(tmp_path: Path):
    preset = tmp_path / "few.yaml"
    preset.write_text("stage2: {steps: 3}\n")
    assert wrinklefree("check", "tiny").returncode == 0
    result = wrinklefree("check", "tiny", str(preset))
    assert (result.returncode, "warmup_steps is 4 and steps 3" in result.stderr) == (2, True)


def test_a_recipe_is_listed_and_becomes_a_preset_that_is_valid(tmp_path: Path):
    assert "\nproposed: dclm_baseline 40 %" in wrinklefree("catalog").stdout
    assert "mlfoundations/dclm-baseline-1.0" in wrinklefree("catalog", "show", "proposed").stdout
    commit = "c" * 40
    preset = tmp_path / "small.yaml"
    options = ("--max-tokens", "1000", "--revision", f"codeparrot={commit}", "--output", preset)
    written = wrinklefree("recipe", "proposed", *map(str, options))
    assert f"snakemake all -n --configfile {preset}" in written.stdout
    assert f"revision: {commit}" in preset.read_text()
    assert "max_tokens: 400\n" in preset.read_text()
    assert wrinklefree("check", str(preset)).returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--revision", "codeparrot"), "'codeparrot': write DATASET=COMMIT"),
        (("--revision", "codeparrot=a", "--revision", "codeparrot=b"), "names a data set twice"),
        (("--output", "params"), "params exists and was not written by wrinklefree recipe"),
        (("--output", "/proc/none/a.yaml"), "error: [Errno 2] No such file or directory"),
        (("--max-tokens", "0"), "'0': give a whole number above 0"),
    ],
)
def test_options_of_a_recipe_say_their_form(options: tuple[str, ...], message: str):
    result = wrinklefree("recipe", "proposed", *options)
    assert (result.returncode, message in result.stderr) == (2, True)


def test_hash_prints_what_a_source_of_files_asks_for(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text("{}")
    expected = digest_of_files({path.name: path for path in tmp_path.iterdir()})
    assert wrinklefree("hash", "*.txt", "b.jsonl", cwd=tmp_path).stdout == expected + "\n"
    result = wrinklefree("hash", "*.csv", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")


def test_hash_of_a_folder_is_what_a_base_model_asks_for(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    expected = digest_of_files({"config.json": tmp_path / "model" / "config.json"})
    assert wrinklefree("hash", "model", cwd=tmp_path).stdout == expected + "\n"


def test_verify_finds_an_edit(tmp_path: Path):
    with writing_artifact(tmp_path / "one", Origin("fetch", {}, {})) as (folder, _):
        (folder / "a.txt").write_text("text")
    assert wrinklefree("verify", str(tmp_path / "one")).returncode == 0
    (tmp_path / "one" / "a.txt").write_text("tixt")
    assert "a.txt: content differs" in wrinklefree("verify", str(tmp_path / "one")).stderr


def test_verify_looks_into_folders_of_artifacts_and_at_all_of_them(tmp_path: Path):
    for name in ("base", "distill/ar", "distill/dlm"):
        with writing_artifact(tmp_path / name, Origin("fetch", {}, {})) as (folder, _):
            (folder / "a.txt").write_text("text")
    folders = [str(tmp_path / name) for name in ("distill", "base")]
    whole = wrinklefree("verify", *folders)
    assert whole.returncode == 0
    assert [line.split(":")[0].rpartition("/")[2] for line in whole.stdout.splitlines()] == [
        "ar",
        "dlm",
        "base",
    ]
    (tmp_path / "distill" / "ar" / "a.txt").write_text("tixt")
    damaged = wrinklefree("verify", *folders)
    assert damaged.returncode == 2 and len(damaged.stdout.splitlines()) == 2
    assert "distill/ar/a.txt: content differs" in damaged.stderr


@pytest.mark.parametrize("module", ["torch", "mlflow", "transformers", "pyarrow", "datasets"])
def test_settings_and_commands_import_nothing_heavy(module: str):
    code = (
        "import sys, wrinklefree.cli, wrinklefree.config.load, wrinklefree.tracking.stage,"
        "wrinklefree.config.catalog_text;"
        f"sys.exit({module!r} in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "src")}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
    )


def test_a_prompt_that_is_no_text_is_one_line_and_status_2(tmp_path: Path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    command = [sys.executable, "-m", "wrinklefree.cli", "generate", "model.gguf", b"caf\xe9"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert (result.returncode, result.stderr.count(b"\n")) == (2, 1)
    assert result.stderr.startswith(b"error: the prompt is not UTF-8")


def test_who_interrupts_a_command_sees_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_plan", interrupted)
    monkeypatch.setattr(sys, "argv", ["wrinklefree", "plan"])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 130 and not any(capsys.readouterr())


def test_who_has_read_enough_sees_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "wrinklefree.cli", "catalog"]
    result = subprocess.run(
        command, cwd=PROJECT, stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, b"")
