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
RESULTS = PROJECT / "docs" / "results"
FIGURES = (PROJECT / "docs" / "results.md").read_text()
MEASURED = json.loads((RESULTS / "evaluation.json").read_text())
CONTROL = json.loads((RESULTS / "control.json").read_text())


def rows_between(text: str, start: str, end: str) -> dict[str, list[str]]:
    """Cells of the first table of a part of ``text``, by the first of each row."""
    rows: dict[str, list[str]] = {}
    for line in text.split(start, 1)[1].split(end, 1)[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 2:
            rows.setdefault(cells[0], cells)
    return rows


@pytest.mark.parametrize("model", list(MEASURED["models"]))
def test_the_results_have_the_measured_figures(model: str):
    measured = MEASURED["models"][model]
    row = rows_between(FIGURES, "<!-- results", "<!-- end of results")[LABELS[model]]
    assert f"{measured['loss']:.3f}" in row[1]
    assert f"{measured['perplexity']:.2f}" in row[2]
    assert f"{measured['bits_per_byte']:.3f}" in row[3]
    if (recovered := MEASURED["recovered"].get(model)) is not None:
        assert f"{recovered:.1%}".replace("%", " %") == row[4]


@pytest.mark.parametrize("student", list(CONTROL["students"]))
def test_the_first_screen_has_what_ternary_weights_were_measured_to_cost(student: str):
    measured = CONTROL["students"][student]
    row = rows_between(README, "<!-- control", "<!-- end of control")[LABELS[student]]
    losses, cost = measured["losses"]["overall"], measured["differences"]["overall"]
    assert row[1:3] == [f"{losses['dense']:.3f}", f"{losses['ternary']:.3f}"]
    assert row[3] == f"{cost['mean']:+.3f} ({cost['low']:.3f} to {cost['high']:.3f})"
    by_domain = rows_between(FIGURES, "<!-- control", "<!-- end of control")[LABELS[student]]
    for name, shown in zip(["overall", *sorted(CONTROL["shares"])], by_domain[1:], strict=True):
        cost = measured["differences"][name]
        assert shown == f"{cost['mean']:+.3f} ({cost['low']:.3f} to {cost['high']:.3f})"


def test_the_measured_run_kept_what_the_project_promises():
    loss = {name: model["loss"] for name, model in MEASURED["models"].items()}
    assert loss["base"] < 8.3 / 2, "the base ends well below ln(4096)"
    assert loss["naive"] > loss["base"] + 0.5, "naive ternarization is bad"
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
