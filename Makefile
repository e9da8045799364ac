# make demo       from a bare clone: install, run the main job, print the table
# make test       from a bare clone: install, then linters, types and tests
# make test-slow  the tests that `make test` leaves out
# make clean      remove the virtual environment, the demo's zoo and its results

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

# What `make demo` runs and where; more options for fit in DEMO_FIT.
DEMO := runs/demo
DEMO_FIT ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Installing is skipped while a stamp of the present dependencies is there.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
INSTALLED := $(VENV)/.wsflow-$(KEY)
INSTALLED_DEV := $(VENV)/.wsflow-dev-$(KEY)

# One thread a process: the test workers share the cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest

.PHONY: demo test test-slow lint install install-dev clean
.DELETE_ON_ERROR:

# Training goes on from its last checkpoint, so a second run only samples and evaluates.
demo: install
	$(BIN)/wsflow fit -c configs/demo.yaml --ckpt_path last $(DEMO_FIT)
	$(BIN)/wsflow predict --ckpt_path $(DEMO)/checkpoints/last.ckpt --n 200 --steps 4 --overwrite
	$(BIN)/wsflow evaluate --samples $(DEMO)/samples --split test

install: $(INSTALLED)

install-dev: $(INSTALLED_DEV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "wsflow needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "no virtual environment: Python's venv module is incomplete" \
		"(on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }

$(INSTALLED): | $(BIN)/python
	$(PIP) --editable .
	@rm -f $(VENV)/.wsflow-* && touch $@

$(INSTALLED_DEV): | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@rm -f $(VENV)/.wsflow-* && touch $(INSTALLED) $@

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile
	@if [ -x $(BIN)/shellcheck ]; then $(BIN)/shellcheck docker/*.sh docker/slurm/*.sh; fi

test: lint
	$(PYTEST) -m "not slow" -n $(WORKERS) --cov=wsflow --cov-report=term --cov-fail-under=90

test-slow: install-dev
	$(PYTEST) -m slow

clean:
	rm -rf $(VENV) $(DEMO) zoos/demo
