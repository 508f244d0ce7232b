# Every target installs what it needs into $(VENV) first; a Python from 3.11 to 3.13 is enough.
#   PYTHON=python3.12   the interpreter to start from (default: the first one that fits)
#   VENV=.venv          where everything is installed
#   GPU_ARGS=...        more options for benchmarks/gpu.py (bench-gpu)
#   PIP_ARGS=...        more options for pip; without a GPU, smaller downloads of torch:
#                       PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST := $(BIN)/python -m pytest
# One thread for each test process: two that take all cores slow each other down several times.
PARALLEL := OMP_NUM_THREADS=1 $(PYTEST) -n 2

.PHONY: help setup demo test test-fast check fmt bench bench-gpu

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## install everything into .venv

demo: $(READY) ## prune, export, verify and serve a small real model on this machine: ends with a report
	$(BIN)/cofi-deploy demo

test: test-fast ## every test, real Triton servers included; those that need a GPU skip where there is none
	$(PARALLEL) --dist loadfile -m "slow and not (e2e or gpu or triton)"
	$(PYTEST) -m "e2e or gpu or triton"

test-fast: $(READY) ## the fast tests: a few minutes
	$(PARALLEL)

check: $(READY) ## format, lint, types and layers; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/python tests/tensorrt_stubs.py $(VENV)/stubs
	MYPYPATH=$(VENV)/stubs $(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(READY) ## format, and repair what ruff can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(READY) ## train and measure what the README shows: hours, on an idle machine
	$(BIN)/python benchmarks/accuracy.py train mrpc sst2 --recipe fast --seed 1
	$(BIN)/python benchmarks/pruning.py
	$(BIN)/python benchmarks/tables.py

# PyTorch, transformers and onnx are enough for it: it takes PYTHON, else what is installed in
# $(VENV), else a python3 that has them, and installs only where there is none of these.
ifneq ($(filter bench-gpu,$(MAKECMDGOALS)),)
BARE := import importlib.util as u, sys; \
	sys.exit(any(u.find_spec(name) is None for name in ("torch", "transformers", "onnx")))
GPU_PYTHON := $(or $(PYTHON),$(if $(wildcard $(READY)),$(BIN)/python),\
	$(shell python3 -c '$(BARE)' >/dev/null 2>&1 && echo python3))
endif

bench-gpu: $(if $(GPU_PYTHON),,$(READY)) ## what needs a GPU, on one idle card: eight minutes, see benchmarks/gpu.py
	$(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu.py $(GPU_ARGS)

# Installed again whenever the requirements change.
$(READY): pyproject.toml constraints.txt
	@set -e; for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
		if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
			>/dev/null 2>&1; then \
			echo "$$python -m venv $(VENV)"; exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo "no Python from 3.11 to 3.13 among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python);" \
		"install one, or name it: make PYTHON=/path/to/python" >&2; exit 1
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
		-e '.[dev,demo]' -c constraints.txt
# TensorRT's published types; what they depend on is TensorRT itself, of NVIDIA's own index.
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
		--no-deps tensorrt-stubs -c constraints.txt
	@touch $@
