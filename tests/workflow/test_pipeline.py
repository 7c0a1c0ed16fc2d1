"""The tiny preset, run for real: what users are promised holds of its results."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from workspace import (
    ENVIRONMENT,
    SNAKEMAKE,
    TARGETS,
    dvc_accept,
    dvc_outputs,
    dvc_reruns,
    run,
    snakemake_reruns,
)

from wrinklefree.export.gate import AMPLIFICATION_MARGIN, LOGITS_TOLERANCE
from wrinklefree.schema.load import overlay, read_yaml
from wrinklefree.schema.reads import narrow
from wrinklefree.tracking.artifact import open_artifact, read_manifest
from wrinklefree.train.history import read_history

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),  # inside of DVC
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # inside of torch
]

SMALL = ["world_model", "search", *(f"architecture.{name}" for name in ("moe", "hybrid", "depths"))]
STAGE2 = ["--model", "models/subln", "--teacher", "models/base"]
STAGE2 += [
    "--teachers",
    "models/teachers",
    "--mixture",
    "data/mixture",
    "--output",
    "models/stage2",
]


def stage2(project: Path, **settings: Any) -> list[str]:
    """The command of stage 2 with other settings."""
    section = narrow(read_yaml(project / "params.yaml"), "stage2")
    section["stage2"].update(settings)
    script = ["python", "-P", "workflow/scripts/stage2.py"]
    return [*script, "--settings", json.dumps(section), *STAGE2]


def test_the_exported_student_gives_lm_eval_each_answer_that_the_results_have(
    completed: Path, tmp_path: Path
):
    arguments = "--model hf --model_args pretrained=../../models/export,dtype=float32 --device cpu"
    asked = "--include_path . --tasks offline_sciq,offline_lambada --log_samples --output_path"
    run(completed / "data/tasks", "lm_eval", "run", *f"{arguments} {asked} {tmp_path}".split())
    theirs = {
        (re.findall("offline_([a-z]+)", file.name)[0], sample["doc_id"]): sample
        for file in tmp_path.rglob("samples_offline_*.jsonl")
        for sample in map(json.loads, file.read_text().splitlines())
    }
    lines = (completed / "results/answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert {one["model"] for one in answers} == {"base", "naive", "subln", "stage2", "distill_ar"}
    ours = {(one["task"], one["question"]): one for one in answers if one["model"] == "distill_ar"}
    assert set(ours) == set(theirs) and len(ours) == 12
    gate = read_manifest(completed / "models" / "export").facts["gate"]
    allowed = max(LOGITS_TOLERANCE, AMPLIFICATION_MARGIN * gate["logits_relative_sensitivity"])
    clear = 0
    for question, sample in theirs.items():
        sums = ours[question]["log_likelihoods"]
        found = [float(likelihood) for likelihood, _ in sample["filtered_resps"]]
        assert found == pytest.approx(sums, rel=allowed)
        lengths = map(len, sample["doc"].get("choices", ["?"]))
        by_length = [total / length for total, length in zip(sums, lengths, strict=True)]
        for ours_is, theirs_is, scores in (
            ("right", "acc", sums),
            ("right_by_length", "acc_norm", by_length),
        ):
            best, *others = sorted(scores, reverse=True)
            # An int8 code at a rounding boundary may turn an answer that is as good as a tie.
            if not others or best - others[0] > 2 * allowed * abs(best):
                assert ours[question][ours_is] == sample.get(theirs_is)
                clear += 1
    assert clear > 12, "too many ties to tell anything"


def test_every_artifact_is_whole(completed: Path):
    copies = ("mlartifacts", "work")
    manifests = [
        path
        for path in completed.rglob("manifest.json")
        if path.relative_to(completed).parts[0] not in copies
    ]
    assert len(manifests) == len(dvc_outputs(completed))
    for manifest in manifests:
        open_artifact(manifest.parent)
        kept = completed / "work" / "kept" / manifest.relative_to(completed)
        assert kept.samefile(manifest)


def test_a_second_run_has_nothing_to_do(completed: Path):
    output = run(completed, "snakemake", *TARGETS)
    assert "Nothing to be done" in output


def test_snakemake_writes_unit_tests_from_a_finished_run(project: Path):
    run(project, "snakemake", "--generate-unit-tests")
    assert (project / ".tests" / "unit" / "test_stage2.py").is_file()


def test_the_export_loads_in_stock_transformers_as_ternary(completed: Path):
    from transformers import AutoModelForCausalLM

    with torch.compiler.set_stance("force_eager"):
        model = AutoModelForCausalLM.from_pretrained(completed / "models" / "export")
        logits = model(torch.tensor([[5, 6, 7]])).logits
    assert type(model).__name__ == "BitNetForCausalLM"
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert logits.isfinite().all()
    card = (completed / "models" / "export" / "README.md").read_text(encoding="utf-8")
    assert "stage `distill`" in card and "BSD-3-Clause" in card
    (share,) = re.findall(r"\| code, ([\d.]+)% \| ", card)
    assert float(share) == pytest.approx(10.0, abs=5.0), "of so few rows as were read"


def test_a_mixture_of_experts_goes_the_way_of_the_run(completed: Path):
    folder = completed / "research" / "architecture" / "moe"
    config = json.loads((folder / "distill_ar" / "config.json").read_text())
    assert config["model_type"] == "qwen3_moe"
    layers = (folder / "ternary.csv").read_text()
    assert "distill_ar,model.layers.1.mlp.experts.down_proj.linear,131072," in layers
    facts = read_manifest(folder).facts
    assert set(facts["accepted"]) == {"stage2", "distill_ar"}
    assert set(facts["loss"]) == {*facts["recovered"], "base", "dlm", "distill_dlm"}
    last = read_history(folder / "distill_ar")[-1]
    assert 2.0 <= last["train/router_balance"] < 8.0 and "future_tokens/loss_2" in last
    assert "export will refuse" not in (completed / "logs" / "architecture.moe.log").read_text()


def test_a_model_with_states_goes_the_way_of_the_run_but_for_diffusion(completed: Path):
    folder = completed / "research" / "architecture" / "hybrid"
    said = (completed / "logs" / "architecture.hybrid.log").read_text()
    assert re.search(r"ternary are .*mamba\.in_proj, .*\n.*dense are .*mamba\.A_log", said)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["base", "naive", "subln", "stage2", "distill_ar"]
    layers = (folder / "ternary.csv").read_text()
    assert "distill_ar,model.layers.0.mamba.out_proj," in layers


def test_a_student_that_leaves_tokens_out_goes_the_way_of_the_run(completed: Path):
    student = completed / "research" / "architecture" / "depths" / "distill_ar"
    last = read_history(student)[-1]
    assert last["choice/computed"] == pytest.approx(0.5, abs=0.05)
    transforms = json.loads((student / "wrinklefree.json").read_text())["transforms"]
    seed = transforms[0].pop("seed")
    assert transforms[0] == {"name": "mixture_of_depths", "every": 2, "capacity": 0.5}
    assert seed > 0, "the routers' first weights are this run's own"


@pytest.mark.parametrize("stage", SMALL)
def test_other_models_and_a_search_take_less_than_a_minute(completed: Path, stage: str):
    record = json.loads((completed / "logs" / "benchmarks" / f"{stage}.jsonl").read_text())
    beside = max(1.0, max(os.getloadavg()) / (os.cpu_count() or 1))
    assert record["s"] < 60 * beside


def test_a_killed_architecture_goes_on_and_one_with_the_settings_of_the_run_is_the_run(
    project: Path,
):
    made = ("base", "subln", "stage2", "dlm", "distill/dlm")
    own = read_manifest(project / "models/distill/ar").settings
    for folder in (*(project / "models" / name for name in made), project / "results"):
        own = overlay(own, read_manifest(folder).settings)
    section = {"shared": {}, "each": {"same": {**own, "base": own["base"]["scratch"]}}}
    del section["each"]["same"]["seed"]
    settings = json.dumps({"seed": own["seed"], "architectures": section})
    command = ["python", "-P", "workflow/scripts/architecture.py", "--settings", settings]
    command += ["--architecture", "same", "--mixture", "data/mixture"]
    command += ["--tokenizer", "data/tokenizer", "--teachers", "models/teachers"]
    command += ["--output", "research/architecture/same"]
    for reached in ("base/step-*/manifest.json", "models/stage2/manifest.json"):
        process = subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        while not list((project / "work" / "architecture.same").glob(f"*/{reached}")):
            assert process.poll() is None, "the stage ended before it could be killed"
            time.sleep(0.005)
        process.kill()
        process.wait()
    output = run(project, *command)
    assert "same: distilled\n" in output and "same: stage 2\n" not in output
    folder = project / "research" / "architecture" / "same"
    for name in ("model.safetensors", "history.jsonl", "config.json", "wrinklefree.json"):
        assert (folder / "distill_ar" / name).read_bytes() == (
            project / "models" / "distill" / "ar" / name
        ).read_bytes()
    found, expected = (
        json.loads((path / "evaluation.json").read_text()) for path in (folder, project / "results")
    )
    assert found | {"tasks": expected["tasks"]} == expected


def test_a_killed_stage_goes_on_and_ends_with_the_same_bytes(project: Path, forked: dict[str, str]):
    weights = project / "models" / "stage2" / "model.safetensors"
    expected = weights.read_bytes()
    command = stage2(project)
    killed_at = []
    for checkpoints in (1, 2):  # killed twice, at another step each time
        process = subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        wait_for_checkpoints(project, process, checkpoints)
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at.append(checkpoint_steps(project))
    assert read_manifest(project / "models" / "stage2"), "the old artifact is gone"
    output = run(project, *command, environment=forked)
    assert f"going on from step {killed_at[-1][-1]}" in output
    assert weights.read_bytes() == expected
    (kept,) = (project / "work" / "stage2").glob("*/step-*")
    steps = read_manifest(project / "models" / "stage2").settings["stage2"]["steps"]
    assert kept.name == f"step-{steps:08d}", "the last checkpoint, and no other"


TRAINED = {
    "base": ("models/base", {"mixture": "data/mixture", "tokenizer": "data/tokenizer"}),
    "stage2": (
        "models/stage2",
        {
            "model": "models/subln",
            "teacher": "models/base",
            "teachers": "models/teachers",
            "mixture": "data/mixture",
        },
    ),
    "dlm": ("models/dlm", {"model": "models/stage2", "mixture": "data/mixture"}),
    "distill": (
        "models/distill/ar",
        {
            "model": "models/stage2",
            "teacher": "models/base",
            "teachers": "models/teachers",
            "mixture": "data/mixture",
        },
    ),
}
KILLS = 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("stage", TRAINED)
def test_a_stage_that_is_killed_at_any_moment_ends_with_the_same_bytes(project: Path, stage: str):
    output, inputs = TRAINED[stage]
    names = ("model.safetensors", "history.jsonl")
    expected = [(project / output / name).read_bytes() for name in names]
    settings = narrow(read_yaml(project / "params.yaml"), stage, "ar")
    command = ["python", "-P", f"workflow/scripts/{stage}.py", "--settings", json.dumps(settings)]
    command += [word for name, path in inputs.items() for word in (f"--{name}", path)]
    command += ["--output", output, *(["--student", "ar"] if stage == "distill" else [])]
    moments, kills = random.Random(stage), 0
    while kills < KILLS:
        process = subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(moments.uniform(1.0, 8.0)) == 0
            assert [(project / output / name).read_bytes() for name in names] == expected
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    run(project, *command)
    assert [(project / output / name).read_bytes() for name in names] == expected


def test_killed_reconstruction_of_layers_goes_on_and_ends_with_the_same_bytes(
    project: Path, forked: dict[str, str]
):
    settings = read_manifest(project / "models" / "subln").settings
    settings["subln"]["reconstruct"] = {"kind": "layers", "rows": 6, "epochs": 40}
    command = ["python", "-P", "workflow/scripts/subln.py", "--settings", json.dumps(settings)]
    command += ["--model", "models/base", "--mixture", "data/mixture", "--output", "models/subln"]
    process = subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while not list((project / "work" / "subln").glob("*/layer_*")):
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    said = run(project, *command, environment=forked)
    assert "reconstruct: going on behind layer 0" in said
    weights = project / "models" / "subln" / "model.safetensors"
    resumed = weights.read_bytes()
    facts = open_artifact(weights.parent).manifest.facts
    assert facts["loss_after_lambda1"] < facts["loss_before_reconstruction"]
    run(project, *command, environment=forked)  # by hand it is made anew
    assert weights.read_bytes() == resumed


def checkpoint_steps(project: Path) -> list[int]:
    found = (project / "work" / "stage2").glob(f"{16 * '?'}/step-*/manifest.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in found)


def wait_for_checkpoints(project: Path, process: subprocess.Popen[bytes], count: int) -> None:
    while len(checkpoint_steps(project)) < count:
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.005)


def test_a_full_disk_is_one_clear_message_and_the_old_artifact_stays(project: Path):
    before = read_manifest(project / "models" / "stage2")
    # A limit on file size stands in for a full disk: writes fail in the middle of a file.
    result = limited(project, stage2(project, steps=5))
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "no space left" in result.stderr
    assert open_artifact(project / "models" / "stage2").manifest == before


def limited(project: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run ``command`` where every file may have 200 KB, and say so as a full disk would."""
    import resource

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    return subprocess.run(
        command, cwd=project, env=ENVIRONMENT | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        capture_output=True, text=True, preexec_fn=limit, check=False,
    )  # fmt: skip


def test_two_runs_of_a_stage_at_once_are_refused(project: Path, forked: dict[str, str]):
    command = stage2(project, steps=500)
    first = subprocess.Popen(command, cwd=project, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    try:
        wait_for_checkpoints(project, first, 1)
        second = subprocess.run(
            command, cwd=project, env=forked, capture_output=True, text=True, check=False
        )
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 2
    assert f"already running here, in another process (pid {first.pid} on " in second.stderr


def test_training_goes_on_without_its_tracking_server(project: Path, forked: dict[str, str]):
    environment = forked | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    expected = (project / "models" / "stage2" / "model.safetensors").read_bytes()
    result = subprocess.run(
        stage2(project), cwd=project, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "tracking at http://127.0.0.1:9 does not answer" in result.stderr
    assert (project / "models" / "stage2" / "model.safetensors").read_bytes() == expected


def damage_tokens(project: Path) -> str:
    file = project / "data" / "mixture" / "code.train.rows"
    os.truncate(file, file.stat().st_size - 2)
    return "code.train.rows: "


def edit_model(project: Path) -> str:
    file = project / "models" / "subln" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    return "model.safetensors: content differs from its manifest"


def remove_manifest(project: Path) -> str:
    (project / "data" / "mixture" / "manifest.json").unlink()
    return "data/mixture: not a finished artifact"


@pytest.mark.parametrize("damage", [damage_tokens, edit_model, remove_manifest])
def test_a_damaged_input_is_named_before_anything_is_done(
    project: Path, damage: Any, forked: dict[str, str]
):
    message = damage(project)
    before = (project / "models" / "stage2" / "manifest.json").read_bytes()
    result = subprocess.run(
        stage2(project), cwd=project, env=forked, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 3
    assert (project / "models" / "stage2" / "manifest.json").read_bytes() == before


MISTAKES = {
    "  steps: 8": ("  stepz: 8", "stage2.stepz: unknown setting; did you mean steps?"),
    "code: 0.10": ("code: 0.20", "weights sum to 1.1, expected 1"),
    "seed: 1337": ("seed: lucky", "seed: input should be a valid integer; found 'lucky'"),
}


@pytest.mark.parametrize("engine", ["snakemake", "dvc"])
@pytest.mark.parametrize("wrong", sorted(MISTAKES))
def test_a_mistake_in_params_is_told_by_both_engines_without_a_traceback(
    project: Path, engine: str, wrong: str
):
    replacement, message = MISTAKES[wrong]
    params = project / "params.yaml"
    text = params.read_text()
    # The last section called stage2 comes after base, whose steps are others.
    at = text.index(wrong, text.index("stage2:") if "steps" in wrong else 0)
    params.write_text(text[:at] + replacement + text[at + len(wrong) :])
    command = {
        "snakemake": ["snakemake", "-n"],
        "dvc": ["dvc", "repro", "--force", "--single-item", "stage2"],
    }
    result = subprocess.run(
        command[engine], cwd=project, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    output = result.stdout + result.stderr
    assert result.returncode != 0
    assert message in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 24


def test_an_edited_setting_reruns_its_stage_only_and_the_result_differs(
    project: Path, forked: dict[str, str]
):
    before = read_manifest(project / "models" / "export").digest
    params = project / "params.yaml"
    edit(params, "export: {}", "export: {linear_class: autobitlinear}")
    assert set(snakemake_reruns(project)) == {"models/export"}
    run(project, *SNAKEMAKE, environment=forked)
    assert read_manifest(project / "models" / "export").digest != before


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def rename_a_local_variable(project: Path) -> None:
    file = project / "src/wrinklefree/distill/logits.py"
    file.write_text(re.sub(r"\bdivergence_N\b", "of_tokens_N", file.read_text()))


RERUN = {"snakemake": [*SNAKEMAKE, *TARGETS], "dvc": ["dvc", "repro", "--all-pipelines"]}


@pytest.mark.parametrize("engine", ["snakemake", pytest.param("dvc", marks=pytest.mark.exhaustive)])
def test_a_refactoring_that_changes_no_byte_ends_where_it_was_made(
    project: Path, engine: str, forked: dict[str, str]
):
    outputs = dvc_outputs(project).values()
    if engine == "dvc":
        dvc_accept(project)
    before = {name: (project / name / "manifest.json").read_bytes() for name in outputs}
    rename_a_local_variable(project)
    said = run(project, *RERUN[engine], environment=forked)
    ran = set(re.findall(r"^(\S+): \S+ no change in \d+ s$", said, re.MULTILINE))
    taught = {"stage2", "distill.ar", "distill.dlm", "experiment.precision", "finetune", "search"}
    taught |= {f"architecture.{name}" for name in ("moe", "hybrid", "depths")}
    assert ran == {*taught, "experiments"}
    assert not re.search(r"^\S+: \S+ done in", said, re.MULTILINE)
    back = set(re.findall(r"^(\S+): \S+ is put back: made of the same", said, re.MULTILINE))
    # `control` has its folder in common with them, and imports nothing that was edited. DVC starts
    # nothing below what did not change.
    assert back >= ({"control", "evaluate", "export"} if engine == "snakemake" else {"control"})
    for name, content in before.items():
        assert (project / name / "manifest.json").read_bytes() == content, name
    assert snakemake_reruns(project) == {} if engine == "snakemake" else not dvc_reruns(project)
    run(project, "wrinklefree", "verify", "--current", "models/distill/ar", "models/export")


def test_code_beside_what_a_stage_imports_puts_back_what_it_made(
    project: Path, forked: dict[str, str]
):
    with (project / "src/wrinklefree/evaluate/table.py").open("a") as file:
        file.write("EDITED = True\n")
    assert set(snakemake_reruns(project)) > {"results", "data/report", "research/control"}
    said = run(project, *SNAKEMAKE, "all", environment=forked)
    assert set(re.findall(r"^(\S+): \S+ no change in", said, re.MULTILINE)) == {"evaluate"}
    assert set(re.findall(r"^(\S+): \S+ is put back", said, re.MULTILINE)) == {
        "data_report",
        "export",
    }


def test_better_words_rerun_nothing_under_snakemake(project: Path):
    file = project / "src/wrinklefree/quant/bitlinear.py"
    file.write_text(file.read_text().replace('"""', '"""Well: ', 1) + "\n# The end.\n")
    assert snakemake_reruns(project) == {}


def test_a_forced_stage_runs_and_what_is_below_it_is_put_back(
    project: Path, forked: dict[str, str]
):
    said = run(project, *SNAKEMAKE, "--forcerun", "dlm", "all", environment=forked)
    assert set(re.findall(r"^(\S+): \S+ no change in", said, re.MULTILINE)) == {"dlm"}
    assert set(re.findall(r"^(\S+): \S+ is put back", said, re.MULTILINE)) == {
        "distill.dlm",
        "evaluate",
    }


@pytest.mark.exhaustive
def test_dvc_puts_back_what_an_edit_without_effect_started_and_computes_what_was_forced(
    project: Path, forked: dict[str, str]
):
    dvc_accept(project)
    params = read_yaml(project / "params.yaml")
    params["stage2"]["optimizer"]["adamw"] = {"lr": 2.0e-4}  # muon is chosen
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    with (project / "src/wrinklefree/text/sources/hub.py").open("a") as file:
        file.write("# The end.\n")
    said = run(project, *RERUN["dvc"], environment=forked)
    assert "fetch.maths: data/raw/maths is put back" in said
    assert "stage2: models/stage2 is put back: made of the same inputs" in said
    assert not re.search(r"^\S+: \S+ (done|no change) in", said, re.MULTILINE)
    assert dvc_reruns(project) == set()
    said = run(project, "dvc", "repro", "-sf", "export")
    assert re.search(r"^export: models/export no change in", said, re.MULTILINE), said


def test_the_lineage_goes_from_the_downloads_to_the_export(project: Path):
    said = run(project, "wrinklefree", "lineage", "models/export")
    assert said.startswith("models/export ")
    for name in ("models/distill/ar", "models/stage2", "models/base", "data/mixture", "data/raw"):
        assert name in said
    assert "from package sympy 1.14.0 sha256 e092cc3e99d2"[:30] in said
    assert "no record" not in said and "no longer" not in said


def test_both_round_trips_between_the_engines_are_no_ops(project: Path):
    dvc_accept(project)
    assert dvc_reruns(project) == set()
    assert "up to date" in run(project, "dvc", "repro")

    clone = project.parent / "clone"
    run(project, "git", "add", "--all")
    run(project, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "run")
    run(project.parent, "git", "clone", "--quiet", "project", "clone")
    run(clone, "dvc", "cache", "dir", "--local", str(project / ".dvc" / "cache"))
    run(clone, "dvc", "checkout", "--quiet")
    assert dvc_reruns(clone) == set()
    run(clone, "snakemake", *TARGETS, "--touch", "--forceall")  # snakemake-accept
    assert snakemake_reruns(clone) == {}


def test_an_artifact_of_other_settings_or_code_is_not_taken_for_current(project: Path):
    folders = ["data/raw/maths", "models/stage2", "models/distill/ar", "results"]
    command = ["wrinklefree", "verify", "--current", *folders]
    run(project, *command)
    params = project / "params.yaml"
    text = params.read_text()
    edit(params, "\n    relations: {heads: 4, causal: true}", "\n    temperature: 3.0")
    assert "models/distill/ar was made with other settings" in run(project, *command, check=False)
    params.write_text(text)
    with (project / "src/wrinklefree/evaluate/table.py").open("a") as file:
        file.write("EDITED = True\n")
    assert "results was made with other code" in run(project, *command, check=False)


@pytest.mark.exhaustive
def test_dvc_runs_the_graph_to_the_same_bytes_as_snakemake(project: Path, completed: Path):
    made = [project / output for output in dvc_outputs(project).values()]
    for produced in [path for path in made if "data" not in path.parts] + [project / "work"]:
        run(project, "rm", "-rf", str(produced))
    kept = ("check", "fetch", "clean", "tokenizer", "tokenize", "mixture")
    dvc_accept(project, *kept)
    run(project, "dvc", "repro", "--all-pipelines", "--quiet")
    for name in dvc_outputs(project).values():
        manifest = Path(name) / "manifest.json"
        assert (project / manifest).read_bytes() == (completed / manifest).read_bytes(), name
    assert dvc_reruns(project) == set()
    run(project, "snakemake", *TARGETS, "--touch", "--forceall")
    assert snakemake_reruns(project) == {}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_has_the_lineage_from_tokens_to_export(completed: Path):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{completed / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("wrinklefree")
    assert experiment
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1, "one pipeline run, one parent"
    assert str(parents[0].info.run_name).startswith("tiny · ")
    assert parents[0].info.status == "FINISHED"
    assert {"loss/base", "loss/stage2", "recovered/stage2"} <= set(parents[0].data.metrics)
    below: dict[str, dict[Any, Any]] = {}
    for found in (found for found in runs if found not in parents):
        below.setdefault(found.data.tags["mlflow.parentRunId"], {})[found.info.run_name] = found
    stages = below.pop(parents[0].info.run_id)
    assert len(stages) == len(dvc_outputs(completed))
    trials = below.pop(stages["search"].info.run_id)
    assert len(trials) == 3 and not below, "only a search has runs below its own"
    made = {run.data.tags["wrinklefree.output.digest"][:36] for run in stages.values()}
    for name, run_ in stages.items():
        for used in run_.inputs.dataset_inputs:
            assert used.dataset.digest in made, f"{name} read {used.dataset.name}, made by no stage"
    trained = stages["stage2"]
    assert trained.data.params["stage2.steps"] == "8"
    history = client.get_metric_history(trained.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, 9))
    files = {file.path for file in client.list_artifacts(trained.info.run_id, "models/stage2")}
    assert {"models/stage2/manifest.json", "models/stage2/model.safetensors"} <= files
