"""The README shows what was measured, and its commands exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wrinklefree.evaluate.scores import LABELS

PROJECT = Path(__file__).parents[1]
README = (PROJECT / "README.md").read_text()
MEASURED = json.loads((PROJECT / "docs" / "results" / "evaluation.json").read_text())


def rows_of_the_first_table() -> dict[str, list[str]]:
    shown = README.split("<!-- results", 1)[1].split("<!-- end of results", 1)[0]
    rows: dict[str, list[str]] = {}
    for line in shown.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 3:
            rows.setdefault(cells[0], cells)
    return rows


@pytest.mark.parametrize("model", list(MEASURED["models"]))
def test_the_readme_has_the_measured_figures(model: str):
    measured, row = MEASURED["models"][model], rows_of_the_first_table()[LABELS[model]]
    assert f"{measured['loss']:.3f}" in row[1]
    assert f"{measured['perplexity']:.2f}" in row[2]
    assert f"{measured['bits_per_byte']:.3f}" in row[3]
    if (recovered := MEASURED["recovered"].get(model)) is not None:
        assert f"{recovered:.1%}".replace("%", " %") == row[4]


def test_the_measured_run_kept_what_the_project_promises():
    loss = {name: model["loss"] for name, model in MEASURED["models"].items()}
    assert loss["base"] < 8.3 / 2, "the base ends well below ln(4096)"
    assert loss["naive"] > loss["base"] + 1, "naive ternarization is bad"
    assert MEASURED["recovered"]["stage2"] > 0.5
    assert MEASURED["recovered"]["distill_ar"] > 0.5


def test_every_make_target_of_the_readme_exists():
    makefile = (PROJECT / "Makefile").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z0-9-]+)", README, re.MULTILINE))
    assert {"stage2", "test", "all"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_link_of_the_documents_leads_to_a_file():
    for document in [
        PROJECT / "README.md",
        *PROJECT.glob("docs/**/*.md"),
        PROJECT / "CONTRIBUTING.md",
    ]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"


def test_the_readme_of_data_names_every_folder_that_stages_write_there():
    written = re.findall(r"^ +- data/([\w.]+)", (PROJECT / "dvc.yaml").read_text(), re.MULTILINE)
    table = (PROJECT / "data" / "README.md").read_text()
    assert len(set(written)) > 5
    assert not [name for name in set(written) if f"| `{name}" not in table]


def test_make_clean_removes_what_was_produced_and_keeps_the_readme_of_data(tmp_path: Path):
    shutil.copy(PROJECT / "Makefile", tmp_path)
    produced = ("data/raw/a/manifest.json", "data/.raw.partial/x", "models/x", "dvc_plots/x")
    for name in ("data/README.md", "research/dvc.yaml", *produced):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", "data/README.md", "research/dvc.yaml"}
