"""The report of a run as a person opens it."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Template
from workspace import PROJECT, TARGETS, copy_run, run

from snakemake_report_plugin_wrinklefree import _demoted
from wrinklefree.config.load import each_by_itself
from wrinklefree.evaluate.page import body_of, sections_page
from wrinklefree.schema.load import overlay, read_yaml
from wrinklefree.tracking.artifact import read_manifest

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

REPORT = ("--reporter", "wrinklefree")
SCREENSHOTS = PROJECT / "work" / "screenshots"
SIZES = {"wide": (1280, 900), "narrow": (400, 800)}


@pytest.fixture(scope="module")
def reported(completed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project of the finished run, with its report."""
    folder = tmp_path_factory.mktemp("reported") / "project"
    copy_run(completed, folder)
    default = (PROJECT / "params.yaml").read_text()
    later = default.replace("seed: 1337", "seed: 5").replace("maths", "sums")
    (folder / "params.yaml").write_text(later)
    run(folder, "snakemake", *TARGETS, *REPORT)
    return folder


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="make browser installs it")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium; make browser installs Debian's")
    with playwright.sync_playwright() as started:
        # In a container Chromium is run as root, which its sandbox refuses; the page is ours.
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_it_begins_with_the_answer_and_describes_the_run_that_took_place(reported: Path):
    page = (reported / "report.html").read_text(encoding="utf-8")
    answer, comparison = page.index('class="answer"'), page.index('id="Comparison"')
    assert answer < page.index("Held-out loss in nats per token: ") < comparison
    assert answer < page.index("Ternary weights cost ") < comparison
    assert "8 steps of pretraining" in page and "Seed 1337" in page


def test_it_shows_what_rules_mark_and_from_what_it_was_made(reported: Path):
    page = (reported / "report.html").read_text(encoding="utf-8")
    marked = re.findall(r'<figure id="([\w-]+)">', page)
    expected = {f"results-plots-{path.stem}" for path in (reported / "results/plots").iterdir()}
    expected |= {"results-table", "results-samples", "research-control-table"}
    expected |= {f"research-architecture-{name}-table" for name in ("moe", "hybrid", "depths")}
    assert expected <= set(marked) and len(marked) == len(set(marked))
    for folder in ("data/mixture", "models/stage2", "results"):
        assert read_manifest(reported / folder).digest[:12] in page
    links = set(re.findall(r'href="#([^"]+)"', page))
    assert links <= set(re.findall(r'id="([^"]+)"', page))


def test_minutes_are_those_of_the_making(reported: Path):
    page = (reported / "report.html").read_text(encoding="utf-8")
    shown = dict(
        re.findall(r'<tr id="artifact-([\w-]+)">.*?<td class="number">([\d.]+)<', page, re.S)
    )
    for name in ("data/mixture", "models/stage2", "research/architecture/moe"):
        record = json.loads((reported / "provenance" / f"{name}.json").read_text())
        assert shown[name.replace("/", "-")] == f"{record['seconds'] / 60:.1f}"


def test_text_of_a_sample_stays_as_it_is_and_headings_go_lower():
    text = "see a.b/h1, <script>alert(1)</script> </pre><h2>"
    page = _demoted(body_of(sections_page("Samples", [("a", [("b", text)])])))
    assert f"<pre>{html.escape(text)}</pre>" in page and "<h4>a</h4>" in page


@pytest.mark.parametrize("option", [REPORT, ("--report", "other.html")])
def test_artifacts_of_several_runs_are_no_report(reported: Path, option: tuple[str, ...]):
    manifest = reported / "models" / "dlm" / "manifest.json"
    kept = manifest.read_bytes()
    manifest.unlink()
    said = run(reported, "snakemake", *option, check=False)
    manifest.write_bytes(kept)
    assert "error: results was made from another dlm than the one" in said


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_opens_fast_is_legible_and_accessible(
    reported: Path, chromium: Any, size: str, colours: str
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    width, height = SIZES[size]
    page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    file = reported / "report.html"
    page.goto(file.as_uri(), wait_until="load")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{size}-{colours}.png")
    assert said == []
    assert file.stat().st_size < 5e6
    assert page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") < 2000
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page is too wide"
    top = page.locator("h1").bounding_box()
    answer = page.locator(".answer").bounding_box()
    assert top["y"] >= 0 and answer["y"] + answer["height"] < height, "the answer is cut off"
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()


def described(**changes: Any) -> str:
    """What the first page says of a run with these settings, in one line."""
    settings = each_by_itself(overlay(read_yaml(PROJECT / "params.yaml"), changes))
    page = Template((PROJECT / "workflow/report/workflow.rst").read_text(encoding="utf-8"))
    snakemake = {"config": json.loads(json.dumps(settings))}
    return " ".join(page.render(snakemake=snakemake).split())


def test_the_description_says_what_these_settings_do():
    whole = described()
    assert "whose strength λ rises from 0 to 1 in 20 steps." in whole
    assert "Linear layers that quantize, and norms before two of them. Nothing is trained." in whole
    assert "trained the damage away. The result was converted to a block-diffusion model" in whole
    other = described(
        subln={"gain": "none", "reconstruct": {"kind": "layers"}},
        stage2={"lambda_warmup": {"warmup_steps": 0}},
        dlm={"enabled": False},
    )
    assert "trained the damage away. Every model" in other and "diffusion model as" not in other
    assert "Linear layers that quantize. Layers are trained one after the other" in other
    assert "steps of pretraining under quantization. " in other
