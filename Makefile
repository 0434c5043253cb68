# Every verb does its own set-up: Python (with venv) and a package index are enough.

PYTHON ?= python3
PYTEST_ARGS ?=
WORKERS ?= auto
VERSIONS := $(shell sed -n 's/.*Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)

VENV := .venv
BIN  := $(VENV)/bin
# A server for each process: more than four gain little.  WORKERS=0 keeps to one, for a debugger.
SPREAD = --numprocesses=$(WORKERS) --maxprocesses=4 --dist=worksteal
PIP  := $(BIN)/python -m pip -qq --disable-pip-version-check

export PIP_ROOT_USER_ACTION = ignore

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test prove lint types format bench docs faults soak mutants model matrix strict lowest dist clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
		awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

# --- everyday ---------------------------------------------------------------------------

demo: $(VENV)/.demo ## the pool at work: a bank under load, a server restart, the proof
	@$(BIN)/forebay demo

test: $(VENV)/.dev ## the test suite (PYTEST_ARGS="-k name" for a part of it)
	@$(BIN)/python -m pytest -m "not prove" $(SPREAD) $(PYTEST_ARGS)

prove: $(VENV)/.dev ## the proof: every state, schedule and interruption within the bounds; the soak
	@$(BIN)/python -m pytest -m prove $(SPREAD) $(PYTEST_ARGS)

lint: $(VENV)/.dev ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy --strict and pyright
	@$(BIN)/mypy
	@$(BIN)/pyright

format: $(VENV)/.dev ## let ruff repair what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.bench ## forebay and its peers side by side
	@$(BIN)/python -m bench $(BENCH_ARGS)

docs: $(VENV)/.docs ## the reference of the public names, in build/docs
	@$(BIN)/pdoc --docformat google --output-directory build/docs forebay
	@echo "build/docs/index.html"

# --- long ones --------------------------------------------------------------------------

faults: $(VENV)/.faults ## the fault lab: forebay and its peers under faults, for docs/reliability.md
	@$(BIN)/python -m tests.faults --write $(FAULTS_ARGS)

soak: $(VENV)/.dev ## random faults, and nothing is lost: 10 minutes (SOAK_ARGS="--seed 7")
	@$(BIN)/python -m tests.faults.soak $(SOAK_ARGS)

model: $(VENV)/.dev ## visit every reachable state of the pool within the bounds
	@$(BIN)/python -m tests.model $(MODEL_ARGS)

mutants: $(VENV)/.mutants ## mutate the core; docs/mutants.md must explain each survivor
	@$(BIN)/python docs/undecorated.py build/mutants
	@cd build/mutants && $(CURDIR)/$(BIN)/mutmut run | tr '\r' '\n' | tail -n 1
	@$(BIN)/python docs/mutants.py

matrix: ## the suite on every supported Python that is on the PATH
	@for version in $(VERSIONS); do \
		python=python$$version; \
		if ! $$python -c '' 2>/dev/null; then echo "== $$python: not found, skipped"; continue; fi; \
		echo "== $$python"; \
		$(MAKE) --no-print-directory test prove VENV=.venv-$$version PYTHON=$$python || exit 1; \
	done

strict: $(VENV)/.dev ## the doors under python -X dev -W error, under -O, and on uvloop
	@$(BIN)/python -X dev -W error -m pytest tests/doors tests/drivers $(PYTEST_ARGS)
	@$(BIN)/python -O -m pytest tests/doors tests/core $(PYTEST_ARGS)
	@FOREBAY_LOOP=uvloop $(BIN)/python -m pytest tests/doors $(PYTEST_ARGS)

lowest: ## the suite with the oldest psycopg that is supported
	@$(MAKE) --no-print-directory .venv-lowest/.lowest VENV=.venv-lowest
	@.venv-lowest/bin/python -m pytest $(PYTEST_ARGS)

dist: $(VENV)/.dist ## build and check the wheel and the sdist, in dist
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist . > /dev/null
	@$(BIN)/twine check --strict dist/*

clean: ## remove everything that make made
	@rm -rf .venv .venv-* build dist .coverage* .*_cache .hypothesis

# --- set-up: one environment, filled as far as a verb needs it ---------------------------

$(VENV)/bin/python:
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"forebay needs Python 3.11 or newer, but $(PYTHON) is {sys.version.split()[0]}: \
	make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'

# --group came with pip 25.1, so the pip of the environment is renewed first.
define install
@echo "installing $(1)"
@$(PIP) install $(2)
@touch $@
endef

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(call install,forebay and its demo,-e '.[demo]')

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(call install,forebay and its development tools,-e '.[demo$(comma)psycopg2]' --group dev)

$(VENV)/.bench: pyproject.toml | $(VENV)/bin/python
	$(call install,forebay and the pools it is compared with,-e '.[demo]' --group bench)

$(VENV)/.faults: pyproject.toml | $(VENV)/bin/python
	$(call install,forebay and the pools it is compared with under faults,\
		-e '.[demo$(comma)psycopg2]' --group faults)

$(VENV)/.docs $(VENV)/.dist: $(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(call install,forebay and what builds its $*,-e . --group $*)

$(VENV)/.mutants: $(VENV)/.dev
	$(call install,mutmut,--group mutants)

$(VENV)/.lowest: pyproject.toml | $(VENV)/bin/python
	$(call install,forebay with psycopg $(LOWEST_PSYCOPG),-e '.[demo]' --group dev \
		'psycopg[binary]==$(LOWEST_PSYCOPG)')

comma := ,
LOWEST_PSYCOPG = $(shell sed -n 's/^dependencies = \["psycopg>=\(.*\)"\]/\1/p' pyproject.toml).0
