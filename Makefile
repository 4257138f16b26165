# make demo   sets up .venv and runs the demonstration       make test   sets up .venv and runs every fast check
# Variables: PYTHON=python3.12  CUDA=12|13 (which DALI wheel)  EXTRAS=mpi,report,dev
#            TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"  PIP_ARGS="--find-links wheelhouse --no-index"

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := install
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
CUDA ?= 13
EXTRAS ?= mpi,report,tensorboard,dev
TORCH_ARGS ?=
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check --no-input
STAMP := $(VENV)/.installed

.PHONY: help install demo test test-slow gpu cluster lint format pins clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(STAMP)  ## .venv with pinned versions and the package (does nothing when up to date)

$(STAMP): setup.py constraints.txt $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or newer, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); the pinned versions need Python 3.11 or newer: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "[1/4] virtual environment $(VENV) ($$($(PYTHON) -V))"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(PIP_ARGS) -c constraints.txt setuptools wheel
	@echo "[2/4] torch (the largest download)"
	@$(PIP) install $(PIP_ARGS) $(TORCH_ARGS) -c constraints.txt torch
	@echo "[3/4] mmsada-hpc and its dependencies: DALI for CUDA $(CUDA), $(EXTRAS)"
	@$(PIP) install $(PIP_ARGS) -c constraints.txt --use-pep517 --no-build-isolation -e '.[cuda$(CUDA),$(EXTRAS)]'
	@echo "[4/4] check"
	@$(BIN)/python -c 'import mmsada_hpc, mmsada_kernels; print("mmsada-hpc", mmsada_hpc.__version__, "is ready:", "$(BIN)/mmsada --help")'
	@touch $@

demo: $(STAMP)  ## render the toy kitchens, train on two ranks, write a report
	@$(BIN)/mmsada demo

test: lint  ## format, lint, types and the fast tests
	@tests/cluster/install.sh if-wanted
	@$(BIN)/pytest -m "not slow"

test-slow: $(STAMP)  ## the tests marked slow
	@tests/cluster/install.sh if-wanted
	@$(BIN)/pytest -m slow

gpu:  ## the tests that need a GPU, on .venv where there is one, else on PYTHON with torch, triton, numpy and pytest alone
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m pytest -s tests/gpu

cluster: $(STAMP)  ## a real Slurm of two nodes on this machine, to try the launcher on (root; docs/test_cluster.md)
	@tests/cluster/install.sh
	@$(BIN)/python -m tests.cluster up

lint: $(STAMP)  ## format, lint, types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(STAMP)  ## rewrite the files in the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

pins: $(STAMP)  ## print what .venv holds, in the form of constraints.txt
	@$(BIN)/python -m pip list --format=freeze | grep -vE '^(pip|mmsada-hpc)==' | sed 's/+.*//' | sort -f

clean:  ## remove .venv and build products; runs/ and stores/ stay
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@rm -f kernels/cpu/*.so
	@find . -name __pycache__ -prune -exec rm -rf {} +
