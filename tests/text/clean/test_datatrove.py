from __future__ import annotations

import os
import random
import stat
import sys
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
from cleaner import OFF, Texts, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wrinklefree.errors import UserError
from wrinklefree.text.clean import datatrove as engine_module
from wrinklefree.text.clean.datatrove import build_pipelines
from wrinklefree.text.clean.datatrove_run import Pipeline, run_pipelines, slurm_executors
from wrinklefree.text.clean.datatrove_steps import Tasks
from wrinklefree.text.clean.settings import CleaningSettings, DatatroveEngine
from wrinklefree.text.documents import parquet as documents

PARAGRAPHS = st.sampled_from(
    ["one two", "three four five", "one two three four", "ö", "six " * 5, "", "one  two"]
)
TEXTS = st.lists(
    st.tuples(
        st.lists(PARAGRAPHS, min_size=1, max_size=3).map("\n\n".join),
        st.sampled_from(["train", "train", "held_out"]),
    ),
    max_size=14,
)
FILLER = "a text that nothing is wrong with, so that something stays"


def run_in_this_process(pipelines: list[Pipeline], *_: Any) -> None:
    """What an executor does with the tasks of each pipeline, in an order that is not theirs."""
    for pipeline in pipelines:
        for rank in reversed(range(pipeline.tasks)):
            data: Any = None
            for step in pipeline.steps:
                data = step(data, rank, pipeline.tasks)
            for _document in data or ():
                pass


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    TEXTS,
    TEXTS,
    st.integers(1, 5),
    st.fixed_dictionaries(
        {
            "deduplicate_documents": st.booleans(),
            "min_characters": st.integers(1, 4),
            "paragraphs": st.fixed_dictionaries(
                {"deduplicate": st.booleans(), "min_characters": st.integers(1, 12)}
            ),
            "decontamination": st.fixed_dictionaries(
                {
                    "enabled": st.booleans(),
                    "ngram": st.integers(1, 4),
                    "max_training_documents": st.integers(1, 3),
                }
            ),
        }
    ),
)
def test_any_number_of_tasks_writes_the_bytes_of_the_local_engine(
    clean, texts: Texts, other: Texts, tasks: int, steps: dict[str, Any]
) -> None:
    texts = [*texts, (FILLER, "train")]
    chosen = {**steps, "others": {"o": other or [("x", "train")]}, "language": {"enabled": False}}
    engine = {"kind": "datatrove", "tasks": tasks}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "ROW_GROUP_BYTES", 20)
        patch.setattr(engine_module, "run_pipelines", run_in_this_process)
        left, facts, data = clean(texts, **chosen)
        assert clean(texts, engine=engine, **chosen) == (left, facts, data)


ENGLISH = "This is a sentence that nobody will take for anything but English, number"
GERMAN = "Dies ist ein Satz, den niemand für etwas anderes als Deutsch halten wird, Nummer"


def corpus(seed: int, size: int = 60) -> Texts:
    """English with repeats at every level, some German, some evaluation text."""
    draw = random.Random(seed)
    sentences = [f"{draw.choice([ENGLISH] * 4 + [GERMAN])} {n}." for n in range(size)]
    return [
        (
            "\n\n".join(draw.choice(sentences) for _ in range(draw.randint(1, 3))),
            draw.choice(["train"] * 5 + ["held_out"]),
        )
        for _ in range(size)
    ]


STEPS: dict[str, Any] = {
    "paragraphs": {"min_characters": 20},
    "decontamination": {"ngram": 13, "max_training_documents": 1},
}


def test_the_local_executor_gives_the_same_and_says_nothing(
    clean, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 400)
    local = clean(corpus(0), **STEPS)
    assert all(step["bytes"] for name, step in local[1]["dropped"].items() if name in EXACT)
    capfd.readouterr()
    engine = {"kind": "datatrove", "tasks": 3, "workers": 1}
    assert clean(corpus(0), engine=engine, **STEPS) == local
    output = capfd.readouterr()
    assert "datatrove" not in output.out + output.err
    logs = list(clean.folder.glob("2/work/**/*.log"))
    assert any("Processing done" in log.read_text() for log in logs)


@pytest.mark.parametrize("tasks", [1, 3])
def test_tasks_judge_quality_as_the_local_engine_does(
    clean, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 400)
    monkeypatch.setattr(engine_module, "run_pipelines", run_in_this_process)
    others = {"good": corpus(4), "bad": [(text[::-1], split) for text, split in corpus(5)]}
    texts = [*corpus(6), *((text[::-1], split) for text, split in corpus(7))]
    quality = {"enabled": True, "good": ["good"], "bad": ["bad"]}
    chosen = {**STEPS, "language": {"enabled": False}, "quality": quality, "others": others}
    local = clean(texts, **chosen)
    assert local[1]["dropped"]["quality"]["documents"] > 20
    assert clean(texts, engine={"kind": "datatrove", "tasks": tasks}, **chosen) == local


EXACT = ("repeated_documents", "language", "repeated_paragraphs", "contamination")


@pytest.mark.end_to_end
def test_workers_in_processes_of_their_own_give_the_same(
    clean, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 400)
    local = clean(corpus(1), **STEPS)
    capfd.readouterr()
    engine = {"kind": "datatrove", "tasks": 3, "workers": 2}
    assert clean(corpus(1), engine=engine, **STEPS) == local
    output = capfd.readouterr()
    assert "datatrove" not in output.out + output.err


def pipelines_of(folder: Path, texts: Texts, tasks: int, **steps: Any) -> list[Pipeline]:
    raw = write(folder / "raw", texts)
    settings = CleaningSettings.model_validate({"engine": {"kind": "datatrove"}, **steps})
    task = Tasks(settings, {}, "s", {"s": raw}, folder / "work", folder / "cache")
    return build_pipelines(task, tasks)


def test_an_interrupted_pipeline_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = DatatroveEngine(kind="datatrove", tasks=2, workers=1)
    pipelines = pipelines_of(tmp_path, corpus(2), 2, **STEPS)
    work = tmp_path / "work"
    names = [pipeline.name for pipeline in pipelines]
    middle = names.index("filtered")

    def fail(*_: Any) -> None:
        raise RuntimeError("the machine was switched off")

    broken = list(pipelines)
    broken[middle] = pipelines[middle]._replace(steps=[*pipelines[middle].steps[:-1], fail])
    with pytest.raises(RuntimeError, match="switched off"):
        run_pipelines(broken, engine, work, "s")
    finished = work / "pipelines" / "01_digests_of_documents" / "stats" / "00000.json"
    before = finished.stat().st_mtime_ns
    run_pipelines(pipelines, engine, work, "s")
    assert finished.stat().st_mtime_ns == before, "a complete task was run again"
    assert (work / "parts" / "cleaned" / "00001" / "documents.parquet").is_file()


# Without digits, which MinHash holds to be all alike.
WORDS = ["".join(letters) for letters in islice(product("abcdefgh", repeat=4), 0, 4000, 10)]


def near_duplicates(**settings: Any) -> dict[str, Any]:
    return {
        **OFF,
        "near_duplicates": {"enabled": True, **settings},
        "engine": {"kind": "datatrove", "tasks": 3, "workers": 1},
    }


def test_a_near_duplicate_goes_and_a_different_text_stays(
    clean, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 1)
    monkeypatch.setattr(engine_module, "run_pipelines", run_in_this_process)
    first, other = " ".join(WORDS[:200]), " ".join(WORDS[200:])
    near = first.replace(WORDS[100], "changed")
    texts = [  # two to a task: the filter must not count those that pass by
        (near, "held_out"),
        (first, "train"),
        (other, "train"),
        ("short", "train"),
        (first + " end", "held_out"),
        (near, "train"),
    ]
    left, facts, _ = clean(texts, **near_duplicates())
    gone = set(texts) - set(left)
    assert len(left) == 5
    assert gone < {texts[1], texts[5]}
    assert left == [text for text in texts if text not in gone]
    (size,) = (len(text) for text, _ in gone)
    assert facts["dropped"]["near_duplicates"] == {"documents": 1, "paragraphs": 0, "bytes": size}


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 1),
        ({"hashes_per_bucket": 60}, 2),  # alike in 60 hashes at once: too strict
        ({"buckets": 1}, 2),  # one chance instead of 14
        ({"ngram": 60}, 2),  # nearly all runs of 60 words have one of the changes
    ],
)
def test_settings_of_near_duplicates_decide_how_near(
    clean, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int], kept: int
) -> None:
    monkeypatch.setattr(engine_module, "run_pipelines", run_in_this_process)
    changed = [f"changed{word}" if n % 40 == 7 else word for n, word in enumerate(WORDS)]
    texts = [(" ".join(WORDS), "train"), (" ".join(changed), "train")]
    assert len(clean(texts, **near_duplicates(**settings))[0]) == kept


SLURM = {
    "partition": "cpu",
    "time": "2:00:00",
    "cpus_per_task": 3,
    "memory_gb_per_cpu": 5,
    "environment_command": "source /shared/env/bin/activate",
    "sbatch": {"account": "text"},
}


def slurm_engine(**changed: Any) -> DatatroveEngine:
    engine = {"kind": "datatrove", "executor": "slurm", "tasks": 4, "workers": 2}
    return DatatroveEngine.model_validate({**engine, "slurm": {**SLURM, **changed}})


FAKES = {
    # Runs the tasks of the array here and now, and answers as sbatch does.
    "sbatch": """
        while [ $# -gt 1 ]; do
            case $1 in --export=*) export "${1##*,}";; esac
            echo "$1" >> "$FAKE/options"
            shift
        done
        number=$(($(cat "$FAKE/number" 2> /dev/null || echo 0) + 1))
        echo $number > "$FAKE/number"
        cp "$1" "$FAKE/$number.slurm"
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
        for task in $(seq 0 "$last"); do
            SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$1" > /dev/null 2>> "$FAKE/log"
        done
        echo "Submitted batch job $number"
    """,
    "srun": 'while [ "$1" != launch_pickled_pipeline ]; do shift; done; exec "$@"',
    "scontrol": "echo here",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs with the names of Slurm's in front of PATH; what they were told."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, script in FAKES.items():
        file = folder / name
        file.write_text(f"#!/bin/bash\n{script}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    binaries = Path(sys.executable).parent
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{binaries}:{os.environ['PATH']}")
    return folder


def test_slurm_jobs_get_the_settings_and_wait_for_each_other(tmp_path: Path) -> None:
    pipelines = pipelines_of(tmp_path, [("a", "train")], 4)
    executors = slurm_executors(pipelines, slurm_engine(), tmp_path / "work", "s")
    assert [executor.depends for executor in executors] == [None, *executors[:-1]]
    filtered = executors[[pipeline.name for pipeline in pipelines].index("filtered")]
    arguments = filtered.get_sbatch_args(4)
    expected = {
        "partition": "cpu",
        "time": "2:00:00",
        "cpus-per-task": 3,
        "mem-per-cpu": "5G",
        "array": "0-3%2",
        "job-name": "clean.s.filtered",
        "account": "text",
    }
    assert expected.items() <= arguments.items()
    all_arguments = [executor.get_sbatch_args() for executor in executors]
    assert {arguments["kill-on-invalid-dep"] for arguments in all_arguments} == {"yes"}
    assert ["wait" in arguments for arguments in all_arguments] == [*[False] * 8, True]
    assert "qos" not in arguments
    script = filtered.get_launch_file_contents(arguments, "run")
    assert "#SBATCH --partition=cpu\n" in script
    assert "source /shared/env/bin/activate\nset -xe" in script.replace("    ", "")
    named = slurm_executors(
        pipelines, slurm_engine(quality_of_service="long"), tmp_path / "work", "s"
    )
    assert named[0].get_sbatch_args()["qos"] == "long"


@pytest.mark.end_to_end
def test_jobs_of_a_pretended_cluster_give_the_same(clean, cluster: Path) -> None:
    texts = corpus(3, 20)
    local = clean(texts, **STEPS)
    engine = slurm_engine(environment_command="true").model_dump() | {"tasks": 2}
    assert clean(texts, engine=engine, **STEPS) == local
    options = (cluster / "options").read_text().split()
    assert "--dependency=afterok:1" in options
    assert (cluster / "1.slurm").read_text().count("launch_pickled_pipeline") == 1


@pytest.mark.parametrize("status", [0, 1])  # 0 after a time limit
def test_failed_jobs_are_an_error_that_names_their_logs(
    tmp_path: Path, cluster: Path, status: int
) -> None:
    (cluster / "sbatch").write_text(
        f"""#!/bin/bash
        echo "Submitted batch job 7"
        grep -qx "#SBATCH --wait" "${{!#}}" && touch "$FAKE/waited" && exit {status}
        exit 0
        """
    )
    pipelines = pipelines_of(tmp_path, [("a", "train")], 4)
    with pytest.raises(UserError, match=r"1 of 1 tasks of clean\.s\.evaluation.*00_evaluation"):
        run_pipelines(pipelines, slurm_engine(), tmp_path / "work", "s")
    assert (cluster / "waited").exists()


def test_jobs_that_slurm_refuses_are_an_error(tmp_path: Path, cluster: Path) -> None:
    (cluster / "sbatch").write_text("#!/bin/bash\nexit 1")
    pipelines = pipelines_of(tmp_path, [("a", "train")], 4)
    with pytest.raises(UserError, match="Slurm jobs failed or were refused"):
        run_pipelines(pipelines, slurm_engine(), tmp_path / "work", "s")
