# What a person or a CI runs. `make` alone lists the targets.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq --no-input --no-compile \
	--constraint requirements.lock
# pip would compile what it installs on one core. Some libraries hold files that are no Python, for which this fails.
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib || true
DIR ?= nightread-demo
PYTEST := $(BIN)/python -m pytest
# Each of thousands of processes would compile our files again where the environment forbids to keep them compiled.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test unit check style bench offline clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

demo: .venv/.installed ## draw an archive, train a model on it and score the rest (DIR=folder)
	$(BIN)/nightread demo "$(DIR)"

test: .venv/.tests-installed ## run every check and every test (ONLY=path narrows)
ifdef ONLY
	$(PYTEST) $(ONLY)
else
	$(MAKE) --no-print-directory style
	$(PYTEST) --numprocesses 3 --dist loadfile --no-loadscope-reorder
endif

unit: .venv/.tests-installed ## run the tests that need no Ray, no TensorFlow and no network
	$(PYTEST) tests/unit

check: style ## check style, types, imports and documents
	$(PYTEST) --quiet tests/unit/house

style: .venv/.tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.tests-installed ## run the benchmarks and check their answers (ONLY=path narrows)
	@status=0; for file in $(or $(ONLY),$(sort $(wildcard tests/benchmarks/bench_*.py))); do \
		echo "== $$file"; options=; [[ $$file != *bench_score.py ]] || options=--peers; \
		$(BIN)/python "$$file" $$options || status=1; \
	done; exit $$status

offline: .venv/.installed ## build the archive that installs without internet into dist/ (WEIGHTS='FILE …' takes files along)
	sh cluster/deploy/offline/build.sh "$(CURDIR)/$(BIN)/python" dist $(WEIGHTS)

clean: ## remove what the other targets made
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis nightread-demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The project itself is installed editable, so that its tests and Ray's workers run this checkout's files.
.venv/.installed: pyproject.toml requirements.lock
	$(MAKE) --no-print-directory .venv/bin/python
	$(PIP) --editable .
	@$(COMPILE)
	@touch $@

.venv/.tests-installed: pyproject.toml requirements.lock
	$(MAKE) --no-print-directory .venv/bin/python
	$(PIP) --editable '.[test]'
	@$(COMPILE)
	@touch .venv/.installed $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo 'nightread needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is none of them: say make PYTHON=…' >&2; exit 2; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 2; }
