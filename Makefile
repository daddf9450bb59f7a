# `make sweep` and `make test` need only Python >= 3.11: they make .venv and install the pinned versions first.
SHELL := /bin/bash

export RAY_USAGE_STATS_ENABLED = 0
export RAY_AUTH_MODE = disabled
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER = 0
export OMP_NUM_THREADS = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q -c constraints.txt
FILE ?= sweeps/quickstart.yaml
ARGS ?=
N ?= 60

.DEFAULT_GOAL := help
.PHONY: help venv sweep test test-fast test-slow coverage mutants chaos lint bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

venv: .venv/.done ## .venv with the versions of constraints.txt

# The build backend is pinned too, hence no build isolation. torch is large: the first time takes minutes.
.venv/.done: pyproject.toml constraints.txt
	@echo "installing into .venv (several minutes the first time)"
	@for python in python3.11 python3; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	    [ $$python != python3 ] || { echo "Python >= 3.11 is needed" >&2; exit 1; }; \
	done; \
	[ -x $(BIN)/pip ] || $$python -m venv .venv
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '.[dev]'
	@touch $@

sweep: .venv/.done ## the main job; FILE=sweeps/NAME.yaml, ARGS='...'
	$(BIN)/python -m edc_ray.sweep $(FILE) $(ARGS)

# Lint runs beside the tests: mypy takes half a minute where it has no cache yet.
test: .venv/.done ## lint, all tests but slow and gpu (the method's without Ray)
	@$(MAKE) --no-print-directory -j2 lint test-fast
	$(BIN)/pytest -m "ray and not slow and not gpu"

# Not part of `test`: tracing lines doubles the time of the part without Ray.
coverage: .venv/.done ## the same tests, and how many lines they see
	$(BIN)/python -m coverage erase
	$(BIN)/python tests/ray_free.py --cov --cov-report=
	$(BIN)/pytest -m "ray and not slow and not gpu" --cov --cov-append --cov-fail-under=85

test-fast: .venv/.done ## the part that needs no Ray
	$(BIN)/python tests/ray_free.py

# pytest exits with 5 when no test is marked slow.
test-slow: .venv/.done ## lost nodes, kill -9, long runs
	$(BIN)/pytest -m "slow and not gpu" || [ $$? -eq 5 ]

mutants: .venv/.done ## seeded bugs, each of which a test must catch; ARGS='WORD ...' chooses some
	$(BIN)/python -m tests.mutants $(ARGS)

chaos: .venv/.done ## kill -9 of everything that a sweep is made of, N times in all; goes on where its JSONL ends
	$(BIN)/python -m tests.chaos --injections $(N) --out tests/chaos/injections.jsonl $(ARGS)

lint: .venv/.done ## ruff, mypy, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.done ## the claims of benchmarks/ that need no data, written to benchmarks/RESULTS.md; ARGS="NAME ..."
	$(BIN)/python benchmarks/all.py $(ARGS)

clean: ## caches and build outputs; .venv and the stores stay
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
