"""How cost grows: training with model and rows, data stages with text, engines with sources.

`python benchmarks/scaling.py [train] [data] [engines] [--output growth.svg]`: all of them without a
name. Every size is a process of its own, so that its peak memory is its own. The exponent of a
column is the slope of log(cost) over log(size) between the two largest sizes, where what is
constant matters least. The plot has a panel for each size that grows, on logarithmic axes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from _timing import ROOT, print_header, require

from wrinklefree.errors import UserError
from wrinklefree.evaluate.canvas import SERIES, heading, logarithmic, panels, save_svg, styled
from wrinklefree.schema.load import overlay, read_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = dict[str, float]
"""Costs at a size, by name."""

SHAPE = {"width": 256, "layers": 4, "tokens": 256, "rows": 8}
"""Of the default run's stage2: what does not vary."""
GROWTH: dict[str, Sequence[int]] = {
    "width": (128, 256, 512, 1024),
    "layers": (2, 4, 8, 16),
    "tokens": (128, 256, 512, 1024, 2048),
    "rows": (2, 4, 8, 16),
}
STEPS = 3
VOCABULARY = 4096
DOCUMENTS = (8_000, 32_000, 128_000)
"""1, 4 and 16 times those of the default run's generated source."""
SOURCES = (10, 100, 1000)
DOMAINS = 8
ENGINES = {
    "wrinklefree check": ["wrinklefree", "check"],
    "snakemake -n": ["snakemake", "--dry-run", "--quiet", "all"],
    "dvc status": ["dvc", "status", "--quiet"],
}


def train(shape: Mapping[str, int]) -> Point:
    """Seconds of a ternary training step, the least of a few, and the peak of memory above none."""
    from wrinklefree.mixture.token_rows import TokenRows
    from wrinklefree.models.dense import build_scratch
    from wrinklefree.models.settings import ModelSettings
    from wrinklefree.models.surgery import insert_bitlinear, insert_subln
    from wrinklefree.train.hooks import Hook, Training
    from wrinklefree.train.loop import Trainer
    from wrinklefree.train.settings import QuantizedTrainingSettings

    width, heads = shape["width"], shape["width"] // 64
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "layers": shape["layers"]}
    sizes |= {"heads": heads, "key_value_heads": heads // 2}
    model = build_scratch(
        ModelSettings.model_validate(sizes), VOCABULARY, shape["tokens"], 0, seed=0
    )
    insert_subln(model)
    insert_bitlinear(model)
    settings = {
        "steps": 2 + STEPS,
        "batch_size": shape["rows"],
        "optimizer": {"name": "muon"},
        "schedule": {"warmup_steps": 1},
        "lambda_warmup": {"warmup_steps": 0},
    }
    tokens_NT = torch.randint(VOCABULARY, (64, shape["tokens"]))
    started: list[float] = []

    class Clock(Hook):
        def before_step(self, training: Training, step: int) -> dict[str, float]:
            started.append(time.perf_counter())
            return {}

    before = peak_megabytes()
    trainer = Trainer(
        model,
        TokenRows(tokens_NT, seed=0),
        QuantizedTrainingSettings.model_validate(settings),
        hooks=[Clock()],
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.run()
    steps = [late - early for early, late in itertools.pairwise(started)]
    return {"step, s": min(steps[1:]), "memory, MB": peak_megabytes() - before}


def data(documents: int) -> Point:
    """Seconds of each data stage on so many generated documents, and their most memory."""
    settings = generated_sources(1, documents)
    source = next(iter(settings["sources"]))
    commands = {
        "fetch": f"--source {source} --output data/raw/{source}",
        "clean": f"--source {source} --raw data/raw --output data/clean/{source}",
        "tokenizer": "--documents data/clean --output data/tokenizer",
        "tokenize": f"--source {source} --documents data/clean/{source}"
        f" --tokenizer data/tokenizer --output data/tokens/{source}",
        "mixture": "--tokens data/tokens --tokenizer data/tokenizer --output data/mixture",
    }
    costs: Point = {}
    with tempfile.TemporaryDirectory() as folder:
        project = cloned(Path(folder) / "project", settings)
        for stage, arguments in commands.items():
            script = ["python", "-P", f"workflow/scripts/{stage}.py", "--settings", "params.yaml"]
            costs[f"{stage}, s"] = timed([*script, *arguments.split()], project)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return costs | {"memory, MB": most}


def engines(sources: int) -> Point:
    """Seconds until each engine knows what it would do with so many sources and nothing done."""
    settings = generated_sources(sources, 100)
    with tempfile.TemporaryDirectory() as folder:
        project = cloned(Path(folder) / "project", settings)
        return {f"{name}, s": timed(command, project) for name, command in ENGINES.items()}


def generated_sources(count: int, documents: int) -> dict[str, Any]:
    """The default settings with this many generated sources in place of its own."""
    settings = read_yaml(ROOT / "params.yaml")
    maths = overlay(settings["sources"]["maths"], {"documents": documents})
    domains = min(count, DOMAINS)
    settings["sources"] = {
        f"source{i}": overlay(maths, {"seed": i, "domain": f"domain{i % domains}"})
        for i in range(count)
    }
    weights = {f"domain{i}": 1 / domains for i in range(domains)}
    settings["mixture"]["weights"] = weights
    settings["tokenizer"]["vocabulary_size"] = 512  # as generated text has pieces for
    settings["microanneal"]["arms"]["candidate"]["weights"] = weights
    return settings


def cloned(project: Path, settings: dict[str, Any]) -> Path:
    """This commit as a project of its own, with these settings."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    # JSON is YAML too.
    (project / "params.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return project


def timed(command: list[str], project: Path) -> float:
    """Seconds of a command in the folder of a project."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, check=False)
    # 1 is what `dvc status --quiet` says where something is to be done.
    require(done.returncode in (0, 1), f"that {command[0]} works: {done.stderr.decode()[-500:]}")
    return time.perf_counter() - started


def peak_megabytes() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(kind: str, size: Any) -> Point:
    """``kind`` at a size, in a process of its own."""
    command = [sys.executable, __file__, "--one", kind, json.dumps(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_growth(what: str, sizes: Sequence[int], points: list[Point]) -> None:
    """A row for every size, and the exponent below each column."""
    columns = list(points[0])
    wide = [max(len(name) + 2, 12) for name in columns]
    print(f"\n{what:<12}" + "".join(f"{n:>{w}}" for n, w in zip(columns, wide, strict=True)))
    for size, point in zip(sizes, points, strict=True):
        values = (f"{point[n]:>{w}.3g}" for n, w in zip(columns, wide, strict=True))
        print(f"{size:<12,}" + "".join(values), flush=True)
    growth = math.log(sizes[-1] / sizes[-2])
    slopes = [math.log(max(points[-1][n], 1e-9) / max(points[-2][n], 1e-9)) for n in columns]
    values = (f"{slope / growth:>{w}.2f}" for slope, w in zip(slopes, wide, strict=True))
    print(f"{'exponent':<12}" + "".join(values))


@styled
def growth_plot(found: Mapping[str, tuple[Sequence[int], list[Point]]]) -> Figure:
    """Costs over sizes, a panel for each size that grows, each cost relative to its first."""
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure, grid = panels(rows, columns, (3.3 * columns + 0.4, 0.6 + 2.8 * rows))
    heading(figure, "How cost grows: times the cost at the smallest size")
    for axes in grid[len(found) :]:
        axes.set_axis_off()
    for axes, (name, (sizes, points)) in zip(grid, found.items(), strict=False):
        axes.set_title(name)
        linear = [size / sizes[0] for size in sizes]
        axes.plot(sizes, linear, color="black", linestyle=":", label="linear")
        for color, cost in zip(SERIES, points[0], strict=False):
            relative = [point[cost] / points[0][cost] for point in points]
            axes.plot(sizes, relative, "o-", color=color, markersize=3, label=cost)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
        axes.set_xticks([], minor=True)
        logarithmic(axes)
        axes.legend(fontsize=7)
    return figure


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        kinds: dict[str, Callable[[Any], Point]] = {
            "train": train, "data": data, "engines": engines
        }  # fmt: skip
        print(json.dumps(kinds[sys.argv[2]](json.loads(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description="How cost grows.")
    parser.add_argument("kinds", nargs="*", metavar="train|data|engines", help="default: all")
    parser.add_argument("--output", type=Path, help="an SVG file of the growth")
    arguments = parser.parse_args()
    chosen = arguments.kinds or ["train", "data", "engines"]
    require(set(chosen) <= {"train", "data", "engines"}, "names: train, data or engines")
    print_header("How cost grows")
    measures: list[tuple[str, Sequence[int], str, Callable[[int], Any]]] = []
    if "train" in chosen:
        for name, sizes in GROWTH.items():
            measures.append((name, sizes, "train", lambda size, name=name: SHAPE | {name: size}))
    if "data" in chosen:
        measures.append(("documents", DOCUMENTS, "data", int))
    if "engines" in chosen:
        measures.append(("sources", SOURCES, "engines", int))
    found = {}
    for name, sizes, kind, given in measures:
        points = [measured(kind, given(size)) for size in sizes]
        print_growth(name, sizes, points)
        found[name] = (sizes, points)
    if arguments.output:
        save_svg(growth_plot(found), arguments.output)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
