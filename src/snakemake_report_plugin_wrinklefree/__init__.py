"""The report of a run as one page that needs no network: ``--reporter wrinklefree``.

It begins with the answer, then shows all that rules mark for a report, with their captions, and
from what each artifact was made. Snakemake finds the plugin by the name of this package. What
``snakemake --report`` writes shows the same files, one at a time.
"""

# No annotations from __future__: Snakemake calls those of the settings.

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from snakemake_interface_report_plugins.interfaces import FileRecordInterface
from snakemake_interface_report_plugins.reporter import ReporterBase
from snakemake_interface_report_plugins.settings import ReportSettingsBase

from wrinklefree.engines.answer import answer_of_run
from wrinklefree.engines.described import artifacts_of_run
from wrinklefree.evaluate.page import body_of
from wrinklefree.tracking.provenance import read_provenance, record_of

SECTIONS = ("Comparison", "Training", "Ternary weights", "Research", "Data")
"""Categories of the rules, in the order of the page; others follow by their names."""
_UNSAID = {"results", "data", "report", "plots", "research", "architecture"}
"""Folders of the path of a file that its title does without."""


@dataclass
class ReportSettings(ReportSettingsBase):
    """What ``--report-wrinklefree-...`` can set."""

    path: Path = field(
        default=Path("report.html"), metadata={"help": "File of the report; its folder exists."}
    )


class Result(NamedTuple):
    """A file that the page shows."""

    title: str
    """Nothing where the content has one of its own."""
    anchor: str
    content: Markup
    caption: Markup


class Made(NamedTuple):
    """An artifact that the page's results were made from, or that is one of them."""

    folder: str
    stage: str
    inputs: list[str]
    """Folders of the artifacts that it was made from."""
    minutes: float | None
    """None where no record of provenance is of it."""
    megabytes: float
    digest: str
    settings: str


class Reporter(ReporterBase):
    """Writes the page."""

    settings: ReportSettings

    def render(self) -> None:
        """Write the file of the settings."""
        environment = Environment(
            loader=PackageLoader(__name__, "."),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = environment.get_template("page.html.jinja").render(
            answer=answer_of_run(),
            sections=self._sections(),
            description=_demoted(self.workflow_description),
            artifacts=list(_artifacts()),
        )
        self.settings.path.write_text(page, encoding="utf-8", newline="\n")

    def _sections(self) -> dict[str, list[Result]]:
        found = {
            str(category.name): [
                _result(record)
                for records in below.values()
                for record in sorted(records, key=_place)
            ]
            for category, below in self.results.items()
        }
        order = [name for name in SECTIONS if name in found]
        return {name: found[name] for name in [*order, *sorted(set(found) - set(order))]}


def _artifacts() -> Iterator[Made]:
    run = artifacts_of_run()
    places = {manifest.digest: str(folder) for folder, manifest in run.items()}
    for folder, manifest in sorted(run.items(), key=lambda item: str(item[0])):
        record = read_provenance(record_of(folder), manifest.digest)
        yield Made(
            folder=str(folder),
            stage=manifest.stage,
            inputs=[places[digest] for digest in manifest.inputs.values()],
            minutes=record and record.seconds / 60,
            megabytes=sum(file.size for file in manifest.files.values()) / 1e6,
            digest=manifest.digest[:12],
            settings=yaml.safe_dump(manifest.settings, sort_keys=False),
        )


def _place(record: FileRecordInterface) -> tuple[Any, ...]:
    """Files of a job together, in the order of its rule, but long texts behind its pictures."""
    path, job = Path(record.path), cast(Any, record.job)
    outputs = [Path(output) for output in job.output]
    return job.rule.name, list(job.wildcards), path.stem == "samples", outputs.index(path)


def _result(record: FileRecordInterface) -> Result:
    path, caption = Path(record.path), Markup(record.caption)
    anchor = str(path.with_suffix("")).replace("/", "-")
    title = ": ".join(name for name in path.with_suffix("").parts if name not in _UNSAID)
    if record.mime == "text/html":
        content = _demoted(body_of(path.read_text(encoding="utf-8")))
    elif record.mime.startswith("image/"):
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        said = caption.striptags().partition(". ")[0]
        content = Markup('<div class="plot" tabindex="0"><img alt="{}" src="{}"></div>').format(
            said, f"data:{record.mime};base64,{data}"
        )
        # It has one of its own; of the research targets several may have the same.
        title = title if path.parts[0] == "research" else ""
    else:
        raise ValueError(f"{path}: the report shows pages and pictures, not {record.mime}")
    return Result(title.replace("_", " ").capitalize(), anchor, content, caption)


def _demoted(part: str) -> Markup:
    """Headings two levels lower, and no title: the page has its own."""
    without_title = re.sub(r'<h1 class="title">.*?</h1>', "", part)
    return Markup(
        re.sub(r"(</?h)([1-4])\b", lambda tag: f"{tag[1]}{int(tag[2]) + 2}", without_title)
    )
