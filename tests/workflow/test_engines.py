"""Snakemake and DVC run the same graph: the same stages, commands and reruns."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo
from dvc.utils.hydra import apply_overrides

from wrinklefree.config.load import validate
from wrinklefree.engines.dvc_code import PIPELINES
from wrinklefree.errors import UserError
from wrinklefree.optim.settings import AdamWSettings
from wrinklefree.schema.load import read_yaml, without_nulls
from wrinklefree.schema.reads import READS, reads

sys.path.insert(0, str(Path(__file__).parent))
from workspace import (
    CHECKED,
    PROJECT,
    copy_project,
    dvc_changed_by_settings,
    dvc_outputs,
    dvc_reruns,
    dvc_reruns_after,
    dvc_reruns_of_settings,
    pretend_everything_ran,
    run,
    snakemake_graph,
    snakemake_reruns,
    with_all_below,
)

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.filterwarnings("ignore::wrinklefree.optim.settings.UnusualLearningRateWarning"),
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),  # inside of DVC
]


OTHER_TRAININGS = ("base", "dlm", "distill", "regmix", "microanneal")
UNCHOSEN = re.compile(
    r"optimizer\.(adamw|muonclip|normuon|muon8bit|apollo|apollo_mini|adamw8bit)\."
    r"|clipping\.(adagc|fixed)\.|averaging\.(last|ema)\."
)
"""Blocks of alternatives that the default run does not choose."""


def written_out(parameters: dict[str, Any], but: tuple[str, ...] = ()) -> dict[str, Any]:
    """``parameters`` with the defaults of every section, except where writing them says more."""
    left = ("sources", "resources", *but)
    resolved = validate(parameters).model_dump(mode="json", exclude={*left})
    return without_nulls(parameters | _without_data(resolved))


def _without_data(section: dict[str, Any]) -> dict[str, Any]:
    """What is of use with other settings only: a training's data, MinHash, a quality filter."""
    return {
        key: _without_data(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if key not in ("data", "near_duplicates", "quality")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    copy_project(folder)
    # Trainings are read alike, so that one of them is enough to try what is left to defaults.
    parameters = written_out(read_yaml(folder / "params.yaml"), but=OTHER_TRAININGS)
    # Runs are all alike, and both engines take longer with every one.
    parameters["regmix"]["runs"] = list(range(8))
    parameters["regmix"]["fit"]["held_out_runs"] = 4
    parameters["experiments"]["names"] = ["seeds", "clipping"]
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))
    pretend_everything_ran(folder)
    return folder


@pytest.fixture(scope="module")
def commands(finished: Path) -> dict[str, str]:
    """Snakemake's command of every stage, by its output folder."""
    return snakemake_reruns(finished, "--forceall")


def test_both_engines_have_nothing_to_do_when_all_is_done(finished: Path):
    assert snakemake_reruns(finished) == {}
    assert dvc_reruns(finished) == set()


@pytest.mark.parametrize("preset", [None, "qwen3_4b"])
def test_without_a_target_snakemake_runs_everything(tmp_path: Path, preset: str | None):
    copy_project(tmp_path)
    options = ("--configfile", f"params/{preset}.yaml") if preset else ()
    default, everything = (
        run(tmp_path, "snakemake", *target, "--dry-run", *options) for target in ((), ("all",))
    )
    jobs = [re.findall(r"^(\w+) +(\d+)$", text, re.MULTILINE) for text in (default, everything)]
    assert jobs[0] == jobs[1]
    assert dict(jobs[0])["evaluate"] == "1"


def test_both_snakefiles_are_the_same_workflow(finished: Path, commands: dict[str, str]):
    beside = ("--snakefile", "workflow/Snakefile")
    assert snakemake_reruns(finished, *beside) == {}
    assert snakemake_reruns(finished, *beside, "--forceall") == commands


@pytest.mark.parametrize(
    "command",
    ["", "-s workflow/Snakefile", "--unlock", "--dag", "--rulegraph", "--lint"],
)
def test_snakemake_needs_no_cores(finished: Path, command: str):
    assert "cores" not in run(finished, "snakemake", *command.split())


def test_both_engines_run_the_same_commands(finished: Path, commands: dict[str, str]):
    with Repo(str(finished)) as repo:
        dvc = {stage.outs[0].def_path: (stage.name, stage.cmd) for stage in repo.index.stages}
    assert dvc.pop(CHECKED)[0] == "check"
    assert set(commands) == set(dvc)
    for output, (stage, command) in dvc.items():
        theirs = shlex.split(commands[output])
        at = theirs.index("--settings") + 1
        assert (finished / theirs[at]).is_file()
        theirs[at] = "params.yaml"  # Snakemake hands over the sections, DVC the file
        # DVC tells a stage which instance it is, Snakemake writes it into the command.
        if instance := stage.partition("@")[2]:
            option = theirs.pop(at + 1).removeprefix("--")
            assert theirs.pop(at + 1) == instance
            command = command.replace(f"{{{option}}}", instance)
        assert theirs == shlex.split(command)


def test_no_setting_reaches_a_command_line_of_dvc():
    literal = {"item.model"}  # of a foreach over what dvc.yaml itself lists
    for path in PIPELINES:
        for name, stage in yaml.safe_load((PROJECT / path).read_text())["stages"].items():
            command = stage.get("do", stage)["cmd"]
            assert set(re.findall(r"[$][{](.*?)[}]", command)) <= literal, name


def test_both_engines_have_the_same_edges(finished: Path):
    outputs, graph = dvc_outputs(finished), snakemake_graph(finished)
    for stage, output in outputs.items():
        below = with_all_below({output}, graph) & set(outputs.values())
        assert below == dvc_reruns_after(finished, {stage}), stage


@pytest.mark.parametrize("output", ["data/raw/maths", "models/teachers", "research/regmix_run/0"])
def test_what_is_forced_reruns_with_all_below_it(finished: Path, output: str):
    (stage,) = (name for name, made in dvc_outputs(finished).items() if made == output)
    reruns = snakemake_reruns(finished, "--forcerun", f"{output}/manifest.json")
    assert set(reruns) == dvc_reruns_after(finished, {stage})


def test_other_documents_of_one_source_rerun_the_cleaning_of_all_and_the_same_ones_nothing(
    finished: Path, tmp_path: Path
):
    folder = tmp_path / "fetched"
    shutil.copytree(finished, folder, symlinks=True)
    manifest = folder / "data/raw/maths/manifest.json"
    manifest.touch()
    assert not snakemake_reruns(folder)
    manifest.write_text("other documents\n")
    cleaned = {out for out in dvc_outputs(folder).values() if out.startswith("data/clean/")}
    reruns = set(snakemake_reruns(folder))
    assert cleaned <= reruns
    assert not any(output.startswith("data/raw/") for output in reruns)


@pytest.mark.parametrize(
    ("name", "instances"),
    [
        ("fetch", "data/raw/"),
        ("clean", "data/clean/"),
        ("tokenize", "data/tokens/"),
        ("distill", "models/distill/"),
    ],
)
@pytest.mark.parametrize("option", ["--forcerun", "-R"])
def test_to_force_a_name_that_stands_for_several_jobs_is_to_force_each(
    finished: Path, name: str, instances: str, option: str
):
    outputs = dvc_outputs(finished)
    forced = {stage for stage, output in outputs.items() if output.startswith(instances)}
    assert len(forced) > 1
    assert set(snakemake_reruns(finished, option, name)) == dvc_reruns_after(finished, forced)


def test_dvc_reads_the_settings_that_the_stages_are_given():
    stages = {
        name: stage
        for path in PIPELINES
        for name, stage in yaml.safe_load((PROJECT / path).read_text())["stages"].items()
    }
    del stages["check"]
    for name, stage in stages.items():
        key = "${key}" if "foreach" in stage else None
        if "matrix" in stage:
            (item,) = stage["matrix"]
            key = f"${{item.{item}}}"
        assert stage.get("do", stage)["params"] == reads(name, key), name
    assert set(stages) == set(READS)


def test_a_plain_run_of_either_engine_leaves_the_research_alone(finished: Path):
    with Repo(str(finished)) as repo:
        plain = {stage.outs[0].def_path for stage in repo.stage.collect("dvc.yaml")}
        everything = {stage.outs[0].def_path for stage in repo.index.stages}
    research = {output for output in everything if output.startswith("research/")}
    assert plain == everything - research and research
    assert "research/" not in run(finished, "snakemake", "-n", "--forceall")


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [path]
    return [leaf for key in value for leaf in leaves(value[key], (*path, key))]


def candidates(value: Any) -> list[Any]:
    """Other values that may be valid where ``value`` is."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1, value * 2, 5]
    if isinstance(value, float):
        return [value * 1.01, value * 0.99, value + 0.01]
    if isinstance(value, list) and value and all(isinstance(item, float) for item in value):
        return [[item * 0.9 for item in value]]
    if isinstance(value, list):
        other = [item + 1 for item in value if isinstance(item, int)]
        return [[*value, "another"], [*value, 99], [*value, "sciq"], value[:-1], other]
    words = (
        "original match_rms cosine linear constant ones calibrated mean zero none noisy unit elbo"
        " de bfloat16 adamw polar_express dynamic small absmean ema base reverse uniform Q8_0"
    )
    flipped = value[:-1] + ("0" if value[-1:] != "0" else "1")
    return [
        flipped,
        f"x{value}",
        2,
        *words.split(),
        "autobitlinear",
        "bitlinear",
        "text",
        "json",
        "mathematics",
        [],
    ]


VALID: dict[tuple[str, str], Any] = {}
"""A setting's name and value, and another value that was valid before: trainings are all alike."""


def edited(parameters: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    """``parameters`` with another valid value at ``path``; None if it has only this one."""
    now = at(parameters, path)
    alike = (path[-1], str(now))
    for value in [VALID.get(alike, now), *candidates(now)]:
        if value == now:
            continue
        changed = replaced(parameters, path, value)
        if path[:2] == ("mixture", "weights") or ("arms" in path and "weights" in path):
            other = next(
                (*path[:-1], name) for name in at(parameters, path[:-1]) if name != path[-1]
            )
            changed = replaced(changed, other, at(parameters, other) - (value - now))
        try:
            validate(changed)
        except UserError:
            continue
        VALID[alike] = value
        return changed
    return None


def at(tree: Any, path: tuple[str, ...]) -> Any:
    return at(tree[path[0]], path[1:]) if path else tree


def replaced(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    """``tree`` with ``value`` at ``path``; what lies beside the path is shared."""
    return tree | {path[0]: replaced(tree[path[0]], path[1:], value)} if path else value


PARTS = 12
"""Into which the settings of all edits are divided."""
INSTANCES = {"regmix.runs", "experiments.names"}
"""Settings that say which stages there are."""
ONLY_VALUE = {
    *("kind", "domain", "format", "generator", "granularity", "scale"),
    *("cached_logits", "universal"),
    ("stage2", "distillation", "weights", "relations"),
    *(("architectures", "each", name, "dlm", "enabled") for name in ("hybrid", "depths")),
}
"""Names and paths of settings of which another value needs other settings beside it."""


def readers(path: tuple[str, ...], stages: Iterable[str]) -> set[str]:
    """Those of DVC's stages, named ``fetch@maths``, that read the setting at ``path``."""
    return {
        name
        for name in stages
        for section in reads(*name.split("@"))
        if path[: section.count(".") + 1] == tuple(section.split("."))
    }


def test_every_setting_has_a_reader_and_another_valid_value(finished: Path):
    stages = dvc_outputs(finished)
    parameters = written_out(read_yaml(PROJECT / "params.yaml"))
    for path in leaves(parameters):
        assert readers(path, stages), f"no stage reads {path}"
        needs_others = path[-1] in ONLY_VALUE or path in ONLY_VALUE
        assert edited(parameters, path) or needs_others, f"no other value for {path}"


@dataclass
class Edit:
    """Settings with other values than before, at paths that no stage reads two of."""

    parameters: dict[str, Any]
    readers: set[str]
    names: list[str]


def edits(
    parameters: dict[str, Any], paths: list[tuple[str, ...]], stages: Iterable[str]
) -> list[Edit]:
    """Few edits that hold one of every path between them.

    Together they show what each by itself would: which stages read it directly.
    """
    made: list[Edit] = []
    for path in paths:
        own, name = readers(path, stages), ".".join(path)
        for edit in made:
            others = (name, *edit.names)
            apart = own.isdisjoint(edit.readers) and INSTANCES.isdisjoint(others)
            alike = len({bool(UNCHOSEN.search(other)) for other in others}) == 1
            if apart and alike and (changed := edited(edit.parameters, path)):
                edit.parameters, edit.readers = changed, edit.readers | own
                edit.names.append(name)
                break
        else:
            if changed := edited(parameters, path):
                made.append(Edit(changed, own, [name]))
    return made


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_for_every_setting_both_engines_rerun_the_stages_that_read_it(
    finished: Path, commands: dict[str, str], tmp_path: Path, part: int
):
    parameters = read_yaml(finished / "params.yaml")
    paths = sorted(leaves(parameters))[part::PARTS]
    folder = tmp_path / "edited"
    shutil.copytree(finished, folder, symlinks=True)
    made = edits(parameters, paths, dvc_outputs(finished))
    problems = [problem for edit in made for problem in differences(folder, edit, commands)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("stage", ["stage2", "distill.dlm", "base.scratch.training"])
def test_one_flag_of_dvc_swaps_the_optimizer(tmp_path: Path, stage: str):
    file = tmp_path / "params.yaml"
    shutil.copy(PROJECT / "params.yaml", file)
    apply_overrides(str(file), [f"{stage}.optimizer.name=adamw"])
    found: Any = validate(read_yaml(file))
    for key in stage.split("."):
        found = getattr(found, key)
    assert found.optimizer.chosen == AdamWSettings()


def test_another_optimizer_reruns_the_stage_that_it_trains_in_both_engines(
    finished: Path, commands: dict[str, str], tmp_path: Path
):
    folder = tmp_path / "edited"
    shutil.copytree(finished, folder, symlinks=True)
    parameters = read_yaml(folder / "params.yaml")
    parameters["distill"]["dlm"]["optimizer"]["name"] = "adamw"
    edit = Edit(parameters, {"distill@dlm"}, ["distill.dlm.optimizer.name"])
    assert not differences(folder, edit, commands)
    assert set(snakemake_reruns(folder)) == {"models/distill/dlm", "results"}


def test_snakemake_reruns_nothing_for_an_optimizer_that_is_not_chosen(
    finished: Path, tmp_path: Path
):
    folder = tmp_path / "edited"
    shutil.copytree(finished, folder, symlinks=True)
    parameters = read_yaml(folder / "params.yaml")
    for training in (parameters["stage2"], parameters["base"]["scratch"]["training"]):
        training["optimizer"]["adamw"] = {"lr": 2.0e-4}
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters, sort_keys=False))
    assert not snakemake_reruns(folder)


@pytest.mark.parametrize(
    "setting",
    ["seed", "regmix.runs", "sources.code.licence", "mixture.max_repetition", "distill.dlm.steps"],
)
def test_what_dvc_says_of_settings_alone_is_what_its_status_says(
    finished: Path, tmp_path: Path, setting: str
):
    folder = tmp_path / "edited"
    shutil.copytree(finished, folder, symlinks=True)
    changed = edited(read_yaml(folder / "params.yaml"), tuple(setting.split(".")))
    (folder / "params.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    assert dvc_reruns_of_settings(folder) == dvc_reruns(folder) != set()


def differences(folder: Path, edit: Edit, before: dict[str, str]) -> list[str]:
    """What is wrong with the stages that the engines would run after ``edit``.

    Parameters
    ----------
    before : Snakemake's command of every stage before the edit: settings are files there, whose
        names change with their content.
    """
    (folder / "params.yaml").write_text(yaml.safe_dump(edit.parameters, sort_keys=False))
    jobs, changed, said = snakemake_reruns(folder), dvc_changed_by_settings(folder), edit.names
    if UNCHOSEN.search(said[0]):  # of no effect; DVC compares the stage's section as a whole
        return [f"{said} are not chosen: Snakemake {sorted(jobs)}"] if jobs else []
    problems, outputs = [], dvc_outputs(folder)
    if set(jobs) != (reruns := dvc_reruns_after(folder, changed)) or not reruns:
        problems.append(f"{said}: Snakemake {sorted(jobs)}, DVC {sorted(reruns)}")
    expected = {outputs[stage] for stage in edit.readers}
    told = {output for output, command in jobs.items() if command != before.get(output)}
    if said[0] not in INSTANCES and not told == {outputs[stage] for stage in changed} == expected:
        problems.append(f"{said}: read in Snakemake by {told}, in DVC {changed}, not {expected}")
    return problems


def test_an_edited_module_reruns_the_stages_that_use_its_folder_and_no_others(finished: Path):
    research = {out for out in dvc_outputs(finished).values() if out.startswith("research/")}
    students = {"models/dlm", "models/distill/ar", "models/distill/dlm"}
    expected = {
        "src/wrinklefree/export/hf.py": {"models/export"},
        "src/wrinklefree/evaluate/table.py": {"data/report", "results", "models/export"}
        | research - {"research/synthesize"},
        "src/wrinklefree/diffusion/masks.py": students
        | {"results", "models/export"}
        | research - {"research/finetune"},
        "workflow/scripts/microanneal.py": {"research/microanneal"},
        "workflow/scripts/dlm.py": {"models/dlm", "models/distill/dlm", "results"},
    }
    for name, outputs in expected.items():
        file = finished / name
        before = file.read_text()
        file.write_text(before + "\nEDITED = True\n")
        try:
            assert set(snakemake_reruns(finished)) == outputs, name
            assert dvc_reruns(finished) == outputs, name
        finally:
            file.write_text(before)


def test_a_preset_builds_its_graph_in_both_engines(finished: Path, tmp_path: Path):
    folder = tmp_path / "preset"
    shutil.copytree(finished, folder, symlinks=True)
    preset = "params/qwen3_4b.yaml"
    before = set(snakemake_reruns(folder, "--configfile", preset))
    assert "data/raw/dclm_baseline" in before
    run(folder, "wrinklefree", "preset", "qwen3_4b")
    # Laid into params.yaml, the preset is what it was as a second configuration file.
    assert set(snakemake_reruns(folder)) == before
    assert dvc_reruns(folder) == before
