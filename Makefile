# make stage2   set up, then the pipeline up to stage 2      make all     set up, then everything
# make test     set up, then the test suite                  make check   linters, types, formats
# make report   the HTML report of the last run              make bench   the figures that docs quote

PYTHON ?= python3
CORES ?= all
WORKERS ?= 2
VENV := .venv
STAMP := $(VENV)/.installed

# What a stage starts (python, dvc, mlflow) is the environment's, not the system's.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup stage2 all report test test-all test-unit test-end-to-end test-slurm browser check format bench \
	dvc-accept dvc-research snakemake-accept clean

help:
	@sed -n 's/^# //p' Makefile | head -3

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d; name another: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[dev]'
	@touch $@

stage2: setup
	snakemake --cores $(CORES) stage2

all: setup
	snakemake --cores $(CORES) all
	$(MAKE) report

report: setup
	snakemake $(SNAKEMAKE_ACCEPTED) --reporter wrinklefree
	@echo "report.html is the report; it needs no network"
	@wrinklefree attach report.html || true

# A worker runs all tests of a file, which share what they make; the workers share one finished run.
# Files come in the order of tests/conftest.py: the long ones first.
PYTEST := pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m "not slurm"

# With all of the long proofs, of which a commit's `make test` runs a share.
test-all: setup
	$(PYTEST) -m "not slurm" --exhaustive

test-unit: setup
	$(PYTEST) -m "not end_to_end and not slurm"

test-end-to-end: setup
	$(PYTEST) -m end_to_end

# Of the tests that look at the report: Debian's Chromium (as root), and what drives it.
browser: setup
	command -v chromium || { apt-get update --quiet=2 && apt-get install --quiet=2 --yes chromium; }
	pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'

# Where Debian's slurmctld, slurmd and slurm-client are; else it says what is missing.
test-slurm: setup
	pytest -m slurm -rs

check: setup
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	pyright
	wrinklefree check
	wrinklefree code
	wrinklefree settings
	snakemake --lint

format: setup
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow

bench: setup
	for file in benchmarks/[!_]*.py; do python $$file || exit 1; done

HIDDEN := /research/dvc.yaml
ARTIFACTS := $(patsubst %/manifest.json,%,$(wildcard data/*/manifest.json data/*/*/manifest.json \
	models/*/manifest.json models/*/*/manifest.json results/manifest.json \
	research/*/manifest.json research/*/*/manifest.json))
# Those of the research targets that were run to the end.
RESEARCH := $(patsubst research/%/manifest.json,%, \
	$(wildcard $(patsubst %,research/%/manifest.json,control finetune synthesize search world_model regmix microanneal experiments)))
# Of the trainings that such a target reads, if there are any.
RESEARCH_RUNS := $(patsubst %,%_run,$(filter regmix microanneal,$(RESEARCH))) \
	$(patsubst %s,%,$(filter experiments,$(RESEARCH)))
ARCHITECTURES := $(patsubst research/architecture/%/manifest.json,%,$(wildcard research/architecture/*/manifest.json))
# DVC knows of them after `make dvc-research`.
DVC_ACCEPTED := dvc.yaml $(if $(shell grep -x $(HIDDEN) .dvcignore),, \
	$(addprefix research/dvc.yaml:,$(RESEARCH_RUNS) $(RESEARCH) $(addprefix architecture@,$(ARCHITECTURES))))
SNAKEMAKE_ACCEPTED := all $(RESEARCH) $(ARCHITECTURES)

# Neither engine is told that something is up to date which other settings or code made.

# After Snakemake ran: tell DVC that what stands in the folders is the result.
dvc-accept: setup
	wrinklefree verify --current $(ARTIFACTS)
	wrinklefree check --output data/params.checked
	dvc commit --force --quiet $(DVC_ACCEPTED)
	@dvc status $(DVC_ACCEPTED)

# DVC hears of the research stages from here on, in `dvc status`, `dvc repro` and `dvc pull`.
dvc-research:
	sed -i /research/d .dvcignore

# After DVC ran, or `dvc checkout`: tell Snakemake that what stands in the folders is the result.
snakemake-accept: setup
	wrinklefree verify --current $(ARTIFACTS)
	snakemake fetch --force --allowed-rules fetch --quiet all
	snakemake $(SNAKEMAKE_ACCEPTED) --touch --forceall --quiet all
	@snakemake $(SNAKEMAKE_ACCEPTED) --dry-run --quiet

clean:
	find data -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	rm -rf models results provenance research/*/ work logs report.html dvc_plots .snakemake mlflow.db mlartifacts
