# Checks the files of settings before Snakemake reads params.yaml by itself: it keeps the last of
# repeated keys, runs templates, expands aliases without end and shows tracebacks. What is given with
# --configfile it has read before any rule file, so there its own words come first (docs/reliability.md).

import os
import sys
import warnings
from pathlib import Path

from wrinklefree.config.load import read_settings
from wrinklefree.schema.load import read_yaml
from wrinklefree.errors import UserError

PARAMS = Path("params.yaml")
GIVEN = [Path(os.path.relpath(file)) for file in workflow.configfiles]

try:
    with warnings.catch_warnings():
        # Every stage says its own warnings; the engine reads the settings many times.
        warnings.simplefilter("ignore")
        if workflow.modifier.skip_configfile:  # a workflow that uses this one brings its settings
            for file in GIVEN:
                read_yaml(file)
        else:
            read_settings(PARAMS, *GIVEN)
except UserError as error:
    # One screen, no traceback: this is the user's mistake, not the workflow's.
    several = "\nTargets come first: words after --configfile are files to Snakemake"
    sys.exit(f"error: {error}{several if len(GIVEN) > 1 else ''}")
