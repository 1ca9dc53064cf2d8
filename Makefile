# Set-up, demo, tests.  `make` alone lists the targets.
#   PYTHON   the interpreter that .venv is made with (3.11 to 3.13); by default python3 or the first that works
#   WORKERS  processes that the tests run in

SHELL := bash
VENV := .venv
WORKERS ?= 2

# One thread per process: the tests run in several, and tiny tensors gain nothing from more.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) $(VENV)/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow lint format tables clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "make %-10s %s\n", $$1, $$2 }'

venv:  ## create .venv and install everything, or nothing if it is up to date
	@bash tools/make_venv.sh $(VENV)

demo: venv  ## generate short ListOps data, train a small Megalodon, evaluate it (about 5 minutes)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" bash recipes/lra/listops.sh --demo demo/data demo/run

test: lint  ## formatter, linter, type check and the fast tests
	@$(PYTEST) -n $(WORKERS) --dist loadgroup

test-slow: venv  ## the tests marked slow; installs the extra "eval" that some of them need
	@$(VENV)/bin/pip show --quiet lm-eval transformers 2>/dev/null || $(VENV)/bin/pip install --quiet \
		--constraint constraints.txt --no-build-isolation --editable '.[eval]'
	@$(PYTEST) -m slow

lint: venv  ## check format, style and types
	@$(VENV)/bin/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python

format: venv  ## format the code and fix what the linter can
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

tables: venv  ## rewrite the tables of numbers in the READMEs and docs/
	@$(VENV)/bin/python -m tools.tables

clean:  ## remove caches and build leftovers (.venv, data and results stay)
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
