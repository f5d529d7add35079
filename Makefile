# The verbs of this project. Everything happens in .venv, which `make` sets up from constraints.txt when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-all compare check format clean

help:            ## these lines
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 12

demo: .venv/ready ## MoCo against FAME on synthetic videos: who follows the background? (6 minutes on 2 cores)
	$(BIN)/python launch.py sweeps=demo $(ARGS)

test: .venv/ready ## the fast tests (under 4 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" -n logical --dist loadfile

test-all: .venv/ready ## all tests; those on a SLURM need root and tests/slurm/cluster.sh install
	$(BIN)/python -m pytest

compare: .venv/ready ## ours against other loaders and released forms (15 minutes); ARGS="data --files DIR" for a part
	$(BIN)/python -m tests.compare $(ARGS)

check: .venv/ready ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready ## fix what lint and formatting can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:           ## remove the environment and caches; runs and data stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache *.egg-info

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch .venv/ready
