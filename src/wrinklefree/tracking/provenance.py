"""How an artifact came to be: the second output of every stage, on which nothing depends.

The record of ``models/stage2`` is ``provenance/models/stage2.json``. It holds what must not shape
an artifact's identity: code, versions, threads, device, commit, MLflow run, time. Its field
``digest`` says which artifact it is of.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wrinklefree.errors import UserError
from wrinklefree.tracking.artifact import MANIFEST, Artifact, Manifest, read_manifest
from wrinklefree.tracking.files import write_atomically
from wrinklefree.tracking.pipeline import present_commit

FOLDER = Path("provenance")
_RECORDED_LIBRARIES = (
    "datasets",
    "datatrove",
    "gguf",
    "lm-eval",
    "matplotlib",
    "numpy",
    "optuna",
    "py3langid",
    "pyarrow",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "xllamacpp",
)
"""What can change the bytes of an artifact."""


@dataclass(frozen=True)
class Provenance:
    """The record of one run of a stage."""

    digest: str
    """Digest of the artifact's manifest."""
    inputs: dict[str, dict[str, str]]
    """``path`` and ``digest`` of each input, by its name."""
    code: str
    """Digest of the stage's script and all of this project that it imports, as compiled."""
    versions: dict[str, str]
    commit: str
    """Empty where there is no git repository."""
    uncommitted: bool
    """Whether tracked files differed from the commit."""
    threads: int | None
    """Threads of torch; None for a stage that does not use it. Sums, and so bytes, depend on it."""
    device: str | None
    ternary_products: str | None
    """What int8 codes were multiplied in, on which no byte depends; None where nothing was."""
    platform: str
    host: str
    mlflow_run: str
    """Empty where tracking was off."""
    finished: str
    """Local time, ISO 8601."""
    seconds: float


def record_of(path: Path) -> Path | None:
    """The file with the provenance of the artifact at ``path``; None outside of the project."""
    place, here = path.resolve(), Path.cwd().resolve()
    if not place.is_relative_to(here):
        return None
    relative = place.relative_to(here)
    return FOLDER / relative.with_name(f"{relative.name}.json")


def write_provenance(
    output: Path,
    inputs: dict[str, Artifact],
    *,
    code: str,
    versions: dict[str, str],
    mlflow_run: str,
    seconds: float,
) -> None:
    """Write the record of the artifact that this process has put at ``output``."""
    if (file := record_of(output)) is None:
        return
    torch = sys.modules.get("torch")
    products = sys.modules.get("wrinklefree.kernels.ternary_linear.products")
    commit = present_commit()
    record = Provenance(
        digest=read_manifest(output).digest,
        inputs={
            name: {"path": artifact.path.as_posix(), "digest": artifact.manifest.digest}
            for name, artifact in inputs.items()
        },
        code=code,
        versions=versions,
        commit=commit.hash,
        uncommitted=commit.dirty,
        threads=torch.get_num_threads() if torch else None,
        device=("cuda" if torch.cuda.is_available() else "cpu") if torch else None,
        ternary_products=products.last_used if products else None,
        platform=platform.platform(),
        host=socket.gethostname(),
        mlflow_run=mlflow_run,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        seconds=round(seconds, 1),
    )
    write_atomically(file, json.dumps(asdict(record), indent=1, sort_keys=True) + "\n")


def read_provenance(file: Path | None, digest: str) -> Provenance | None:
    """The record in ``file`` of the artifact with ``digest``; None where it is of another one.

    Raises
    ------
    UserError : it is no record.
    """
    if file is None or not file.is_file():
        return None
    try:
        record = Provenance(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: no record of provenance ({error!s:.200}); delete it") from error
    return record if record.digest == digest else None


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change the bytes of an artifact."""
    versions = {"python": ".".join(map(str, sys.version_info[:2]))}
    for library in _RECORDED_LIBRARIES:
        # Some are optional.
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    return versions


def lineage(path: Path) -> str:
    """The chain from downloads to the artifact at ``path``, as a tree of lines.

    An artifact that several need is written out once. Raises UserError where ``path`` is none.
    """
    return "\n".join(_branch(path, None, "", "", set())) + "\n"


def _branch(
    path: Path, expected: str | None, first: str, indent: str, seen: set[Path]
) -> list[str]:
    """Lines of the tree below ``path``; ``expected`` is the digest that it was read with."""
    if not (path / MANIFEST).is_file() and expected:
        return [f"{first}{path} {expected[:12]}: no longer there"]
    manifest = read_manifest(path)
    other = expected and expected != manifest.digest
    now = f", another one now: {manifest.digest[:12]}" if other else ""
    line = f"{first}{path} {(expected or manifest.digest)[:12]}{now}"
    if path in seen:
        return [f"{line} (above)"]
    seen.add(path)
    record = read_provenance(record_of(path), manifest.digest)
    made = "no record of provenance"
    if record:
        commit = f"commit {record.commit[:7]}{'+' * record.uncommitted}, " if record.commit else ""
        torch = f", torch {record.versions['torch']}" if record.threads else ""
        made = f"{commit}code {record.code[:12]}{torch}, {record.finished[:16]}"
    lines = [f"{line} ({made})", *(f"{indent}  from {text}" for text in _downloads(manifest))]
    inputs = record.inputs if record else {}
    for number, (name, given) in enumerate(sorted(inputs.items()), start=1):
        last = number == len(inputs)
        branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        lines += _branch(
            Path(given["path"]), given["digest"], f"{indent}{branch}{name}: ", indent + below, seen
        )
    return lines


_FROM_OUTSIDE = {
    "fetch": "sources",
    "clean": "cleaning.references",
    "tokenizer": "base.source",
    "base": "base.source",
    "teachers": "teachers",
    "finetune": "finetune",
    "synthesize": "synthesize.teacher",
}
"""Where the settings of a stage name what it brings from outside of the project."""
_NAMING = ("package", "dataset", "repository", "path", "paths", "generator", "version", "revision")


def _downloads(manifest: Manifest) -> list[str]:
    """What came from outside of the project, by the settings of the stage."""
    place = _FROM_OUTSIDE.get(manifest.stage)
    if not place or manifest.settings.get("tokenizer", {}).get("kind", "base") != "base":
        return []
    value: Any = manifest.settings
    for key in place.split("."):
        value = value.get(key, {})
    return [
        " ".join(
            [
                *([source["kind"]] if "kind" in source else []),
                *(f"{source[key]!s:.60}" for key in _NAMING if key in source),
                *([f"sha256 {source['sha256'][:12]}"] if "sha256" in source else []),
            ]
        )
        for source in _sources(value)
    ]


def _sources(value: Any) -> Iterator[dict[str, Any]]:
    """The settings of what can be brought, at any depth of ``value``."""
    if not isinstance(value, dict):
        return
    if value.get("kind") == "scratch" or not value.keys().isdisjoint(_NAMING):
        yield value
    else:
        for item in value.values():
            yield from _sources(item)
