# What the rules share: settings, the sections that a stage reads, digests of its code.

import sys
import warnings
from pathlib import Path

from wrinklefree.config.load import validate, without_nulls
from wrinklefree.config.stages import write_sections
from wrinklefree.errors import UserError
from wrinklefree.tracking.code import code_digest

PROJECT = Path(str(workflow.current_basedir)).parents[1]

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = validate(config, "params.yaml with --config").cleaning.engine
except UserError as error:
    # The files were valid by themselves (settings.smk).
    sys.exit(f"error: {error}")

PARAMETERS = without_nulls(config)
SOURCES = sorted(PARAMETERS["sources"])
STUDENTS = {"ar": "stage2", "dlm": "dlm"}
# Tasks of datatrove that run beside each other on this machine; those of Slurm run elsewhere.
CLEANING_TASKS = engine.workers if engine.kind == "datatrove" and engine.executor == "local" else 1


def settings(stage):
    """A file of the settings that a stage reads, as a function of the rule's wildcards.

    Its name changes with its content, by which Snakemake sees that the stage must run again. No
    command line holds all paths of a large source.
    """

    def of_instance(wildcards):
        # The one wildcard, if there is any, is the source, student, run or arm.
        instance = next(iter(wildcards), None)
        try:
            return write_sections(PARAMETERS, stage, instance, Path("work/settings")).as_posix()
        except OSError as error:
            sys.exit(f"error: {error}")

    return of_instance


def code(stage):
    """Digest of a stage's script and all that it imports: an edit of it reruns the stage."""
    return code_digest(PROJECT / "workflow" / "scripts" / f"{stage}.py", PROJECT / "src")
