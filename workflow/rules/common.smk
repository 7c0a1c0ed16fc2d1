# What the rules share: settings, the sections that a stage reads, digests of its code.

import os
import sys
import time
import warnings
from functools import cache
from pathlib import Path

from snakemake_interface_executor_plugins.settings import ExecMode

from wrinklefree.config.load import each_by_itself, validate
from wrinklefree.schema.load import without_nulls
from wrinklefree.schema.reads import reads
from wrinklefree.config.resources import data_memory_mb, model_memory_mb
from wrinklefree.engines.sections import write_sections
from wrinklefree.engines.what_next import what_next
from wrinklefree.errors import UserError
from wrinklefree.export.settings import missing_llama_cpp
from wrinklefree.tracking import pipeline
from wrinklefree.tracking.code import folders_digest
from wrinklefree.tracking.cpus import available_cpus
from wrinklefree.engines.described import settings_of_run
from wrinklefree.tracking.kept import FORCED

STARTED = time.time()
PROJECT = Path(str(workflow.current_basedir)).parents[1]

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checked = validate(config, "params.yaml with --config")
except UserError as error:
    # The files were valid by themselves (settings.smk).
    sys.exit(f"error: {error}")

if workflow.exec_mode == ExecMode.DEFAULT and (said := missing_llama_cpp(checked.export)):
    print(f"warning: {said}", file=sys.stderr)
PARAMETERS = without_nulls(config)
if any(word.split("=")[0] in ("--report", "--reporter") for word in sys.argv):
    # It describes the run that took place, whatever params.yaml says by now.
    try:
        PARAMETERS = settings_of_run(PARAMETERS)
        # Captions also show what has its default, which nobody wrote down.
        config.update(each_by_itself(PARAMETERS))
    except UserError as error:
        sys.exit(f"error: {error}")
SOURCES = sorted(PARAMETERS["sources"])
STUDENTS = {"ar": "stage2", "dlm": "dlm"}
# GPUs of the stages that compute with the model; without any they train on CPUs.
GPUS = checked.resources.gpus
# Of this machine, from --cores or the default profile.
CORES = workflow.resource_settings.cores
if workflow.resource_settings.nodes is not None:
    # With --jobs they are no limit: jobs of a cluster run on other machines.
    workflow.global_resources["_cores"] = None
# CPUs of such a stage in a job of a cluster, unless --set-threads says otherwise.
REMOTE_THREADS = 8 if GPUS else 2
# Tasks of datatrove that run beside each other on this machine; those of Slurm run elsewhere.
engine = checked.cleaning.engine
CLEANING_TASKS = engine.workers if engine.kind == "datatrove" and engine.executor == "local" else 1


def settings(stage):
    """A file of the settings that a stage reads, as a function of the rule's wildcards.

    Its name changes with its content, by which Snakemake sees that the stage must run again. No
    command line holds all paths of a large source.
    """

    def of_instance(wildcards):
        # The one wildcard, if there is any, is the source, student, run, arm and so on.
        instance = next(iter(wildcards), None)
        tell_what_is_forced()
        if reads(stage, instance) == reads(stage):
            instance = None
        try:
            return settings_file(stage, instance)
        except OSError as error:
            sys.exit(f"error: {error}")

    return of_instance


@cache  # The settings of all sources, once for the jobs of all sources.
def settings_file(stage, instance):
    return write_sections(PARAMETERS, stage, instance, Path("work/settings")).as_posix()


def tell_what_is_forced():
    """Stages that run only because one above them did put back what they made; these don't."""
    if workflow.exec_mode == ExecMode.DEFAULT and workflow.dag:
        rules = {rule.name for rule in workflow.dag.forcerules}
        os.environ[FORCED] = " ".join(sorted(rules | set(map(str, workflow.dag.forcefiles))))


def code(stage):
    """Digest of a stage's script and its folders of code: an edit in them reruns the stage."""
    return folders_digest(PROJECT / "workflow" / "scripts" / f"{stage}.py", PROJECT / "src")


def all_cores(wildcards):
    """Threads of a stage that uses all it can get: ``--cores`` here, a share in a cluster's job."""
    if workflow.exec_mode != ExecMode.DEFAULT:
        return available_cpus()  # inside of the job, which was given them
    if not workflow.local_exec:
        return REMOTE_THREADS
    return min(CORES, workflow.nodes or CORES)


def model_memory(wildcards, attempt):
    """Memory of a stage that computes with the model; more for a job that ran out of it."""
    return attempt * model_memory_mb(checked)


def data_memory(fixed_mb):
    """Memory of a stage of one source, or of all, as a function of the job; more when retried."""

    def of_job(wildcards, attempt):
        return attempt * (fixed_mb + data_memory_mb(checked, wildcards.get("source")))

    return of_job


def instances(name, pattern, **values):
    """Input of the target ``name``, which stands for several jobs: to force it forces each."""
    files = expand(pattern, **values)

    def of_target(wildcards):
        # Options of the command line are known when the graph is built, not yet above.
        if name in workflow.dag_settings.forcerun:
            workflow.dag.forcefiles.update(files)
        return files

    return of_target


if workflow.exec_mode == ExecMode.DEFAULT:
    # Jobs on other machines don't see this process, by which stages know whose they are.
    os.environ.setdefault(pipeline.VARIABLE, pipeline.pipeline_identity())
