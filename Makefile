# `make help` lists what there is. GNU make; needs only Python 3.10-3.13.

PYTHON ?= python3
VENV ?= .venv
TPU_VENV ?= .venv-tpu
PEERS_VENV ?= .venv-peers
BEAM_VENV ?= .venv-beam
LOGGERS_VENV ?= .venv-loggers
# GPU=1 adds NVIDIA's libraries to the environment (Linux, driver 525 or newer): make demo GPU=1
GPU ?=
# Tests at a time: most of a test is Python building graphs, which keeps one core busy.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))' 2>/dev/null || echo 2)

BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime$(if $(filter-out 0,$(GPU)),-gpu)
RUNTIME_LOCK := requirements$(if $(filter-out 0,$(GPU)),-gpu).lock
DEV := $(VENV)/.dev
TPU := $(TPU_VENV)/.tpu
PEERS := $(PEERS_VENV)/.peers
BEAM := $(BEAM_VENV)/.beam
LOGGERS := $(LOGGERS_VENV)/.loggers
TOOLS := .venv-tools

# A file's tests stay together: they share what the file sets up.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# The pip of a fresh environment may be too old to build this project as below.
PIP := pip>=23.1,<27
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# The project itself, built with the locked setuptools: its commands, and a finder that maps `gpt_mesh` to this folder.
THIS_PROJECT := --no-deps --no-build-isolation -e .
# The same as a link, for type checkers and editors, which look for files.
LINK = mkdir -p $(1)/src && ln -sfn "$(CURDIR)" $(1)/src/gpt_mesh && $(1)/bin/python -c \
    'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_paths()["purelib"], "gpt_mesh.pth").write_text(sys.argv[1])' \
    "$(abspath $(1))/src"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo demo-chat test test-slow test-all test-tpu test-peers test-beam test-browser test-loggers test-notebooks test-wheel tpu-env peers-env beam-env audit lint types docs docs-check lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile
	@echo "  GPU=1 adds NVIDIA's libraries; PYTHON=python3.12 picks the interpreter."

venv: $(RUNTIME)  ## make .venv with the locked versions

demo: $(RUNTIME)  ## train and sample a small model on this machine
	$(BIN)/python -m examples.demo

demo-chat: $(RUNTIME)  ## after make demo: tune its model to answer questions
	$(BIN)/python -m examples.demo_chat

test: $(DEV)  ## quick tests
	$(PYTEST) -m "not slow and not peers and not beam and not browser and not loggers and not notebooks and not wheel"

test-slow: $(DEV)  ## the tests that take minutes, but for the exhaustive ones and those of test-tpu
	$(PYTEST) -m "slow and not exhaustive and not tpu_env and not peers and not beam and not browser and not loggers and not notebooks and not wheel"

test-all: $(DEV) $(PEERS) $(BEAM)  ## every test but the browser's, the loggers', the notebooks' and the wheel's
	PEERS_VENV=$(PEERS_VENV) BEAM_VENV=$(BEAM_VENV) $(PYTEST) -m "not browser and not loggers and not notebooks and not wheel"

test-tpu: $(TPU)  ## the tests marked tpu_env, under TensorFlow 2.15 (TPUEstimator)
	$(TPU_VENV)/bin/python $(PIP_INSTALL) -r requirements-dev.lock
	$(TPU_VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile -m "tpu_env and not exhaustive" \
	    $$(grep -rl tpu_env tests --include='test_*.py')

test-peers: $(DEV) $(PEERS)  ## the tests marked peers, against Hugging Face and PyTorch
	PEERS_VENV=$(PEERS_VENV) $(PYTEST) -m peers

test-beam: $(DEV) $(BEAM)  ## the tests marked beam, on Apache Beam's local runners
	BEAM_VENV=$(BEAM_VENV) $(PYTEST) -m beam

test-browser: $(DEV)  ## the tests marked browser: the server's page in Chromium (CHROMIUM=/usr/bin/chromium names one)
	$(BIN)/python $(PIP_INSTALL) -r requirements-browser.lock
	$(BIN)/python -m pytest -m browser

test-loggers: $(LOGGERS)  ## the tests marked loggers: Weights & Biases and MLflow, offline
	$(LOGGERS_VENV)/bin/python -m pytest --noconftest -m loggers tests/experiments/test_loggers.py

test-notebooks: $(DEV)  ## the tests marked notebooks: each runs from start to end in Jupyter's kernel
	$(BIN)/python $(PIP_INSTALL) -r requirements-notebooks.lock
	$(BIN)/python -m pytest -m notebooks tests/test_notebooks.py

test-wheel: $(DEV)  ## the tests marked wheel: build wheel and sdist, install, and use them in an empty environment
	$(BIN)/python -m pytest -m wheel tests/test_wheel.py

beam-env: $(BEAM)  ## make .venv-beam, where create_tfrecords.py --runner runs

peers-env: $(PEERS)  ## make .venv-peers, where Hugging Face and PyTorch are (CPU)

tpu-env: $(TPU)  ## make .venv-tpu, what --tpu runs in (Python 3.10 or 3.11)

audit: $(DEV)  ## compare the locked versions with a file of OSV's advisories: make audit ADVISORIES=all.zip
	$(BIN)/python -m tests.audit $(ADVISORIES)

lint: $(DEV)  ## ruff: mistakes, style, import order
	$(BIN)/ruff check .

types: $(DEV)  ## mypy
	$(BIN)/mypy -p gpt_mesh
	$(BIN)/mypy

docs: $(RUNTIME)  ## write docs/parameters.md and configs/schema.json from config/
	$(BIN)/python -m gpt_mesh.config page > docs/parameters.md.new
	mv docs/parameters.md.new docs/parameters.md
	$(BIN)/python -m gpt_mesh.config schema > configs/schema.json.new
	mv configs/schema.json.new configs/schema.json

docs-check: $(RUNTIME)  ## fail when these two are not what config/ says
	$(BIN)/python -m gpt_mesh.config page | diff -u docs/parameters.md - && \
	    $(BIN)/python -m gpt_mesh.config schema | diff -u configs/schema.json - || \
	    { echo "error: run 'make docs'" >&2; exit 1; }

# --- environments -----------------------------------------------------------------------------------------------------

# Each stamp is written last, so an interrupted installation is taken up again, and a changed lock installs the change.
$(VENV)/.runtime $(VENV)/.runtime-gpu: $(RUNTIME_LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo \
	  "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), this needs Python 3.10-3.13: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python $(PIP_INSTALL) '$(PIP)'
	$(BIN)/python $(PIP_INSTALL) -r $(RUNTIME_LOCK)
	$(BIN)/python $(PIP_INSTALL) $(THIS_PROJECT)
	@$(call LINK,$(VENV))
	@touch $@

$(DEV): $(RUNTIME) requirements-dev.lock requirements-data.lock
	$(BIN)/python $(PIP_INSTALL) -r requirements-dev.lock -r requirements-data.lock
	@touch $@

# The first of these that is a working Python 3.11 or 3.10 (a pyenv shim may be on the PATH and yet not run).
TPU_PYTHONS = python3.11 python3.10 $(PYTHON) $(wildcard $(HOME)/.pyenv/versions/3.11.*/bin/python) \
              $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python)
TPU_PYTHON ?= $(shell for python in $(TPU_PYTHONS); do \
    $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in {(3, 10), (3, 11)})' 2>/dev/null \
    && echo $$python && break; done)

$(TPU): requirements-tpu.lock pyproject.toml
	@test -n "$(TPU_PYTHON)" || { echo \
	  "error: TensorFlow 2.15 needs Python 3.10 or 3.11, and none was found: make tpu-env TPU_PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(TPU_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(TPU_PYTHON) -m venv --clear $(TPU_VENV)
	$(TPU_VENV)/bin/python $(PIP_INSTALL) '$(PIP)'
	$(TPU_VENV)/bin/python $(PIP_INSTALL) -r requirements-tpu.lock
	$(TPU_VENV)/bin/python $(PIP_INSTALL) $(THIS_PROJECT)
	@$(call LINK,$(TPU_VENV))
	@touch $@

$(BEAM): requirements-beam.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { echo \
	  "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), this needs Python 3.10-3.13: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BEAM_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(BEAM_VENV)
	$(BEAM_VENV)/bin/python $(PIP_INSTALL) '$(PIP)'
	$(BEAM_VENV)/bin/python $(PIP_INSTALL) -r requirements-beam.lock
	$(BEAM_VENV)/bin/python $(PIP_INSTALL) $(THIS_PROJECT)
	@$(call LINK,$(BEAM_VENV))
	@touch $@

$(LOGGERS): requirements-loggers.lock
	@$(LOGGERS_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(LOGGERS_VENV)
	$(LOGGERS_VENV)/bin/python $(PIP_INSTALL) '$(PIP)'
	$(LOGGERS_VENV)/bin/python $(PIP_INSTALL) -r requirements-loggers.lock
	@touch $@

# Python 3.11 first; any that has a working venv will do.
PEERS_PYTHONS = python3.11 $(wildcard $(HOME)/.pyenv/versions/3.11.*/bin/python) python3.12 python3.13 python3.10 \
                $(PYTHON)
PEERS_PYTHON ?= $(shell for python in $(PEERS_PYTHONS); do \
    $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
    && echo $$python && break; done)
# PyPI's torch for Linux brings gigabytes of NVIDIA's libraries. The build for CPUs has a version of its own, which pip
# finds on the index that TORCH_INDEX names, or on one that pip is configured for; otherwise this fails.
TORCH := torch==2.13.0$(if $(filter Linux,$(shell uname -s)),+cpu)
TORCH_INDEX ?=
# What lm-evaluation-harness's Hugging Face backend imports. It asks for torch by the name that brings those libraries.
ACCELERATE := accelerate==1.15.0

$(PEERS): requirements-peers.lock requirements-peers-5.lock
	@test -n "$(PEERS_PYTHON)" || { echo \
	  "error: no Python 3.10-3.13 was found: make peers-env PEERS_PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PEERS_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PEERS_PYTHON) -m venv --clear $(PEERS_VENV)
	$(PEERS_VENV)/bin/python $(PIP_INSTALL) '$(PIP)'
	$(PEERS_VENV)/bin/python $(PIP_INSTALL) --no-deps --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '$(TORCH)' $(ACCELERATE) || { \
	  echo "error: no $(TORCH): make peers-env TORCH_INDEX=URL, with the index that pytorch.org names for CPUs" >&2; exit 1; }
	$(PEERS_VENV)/bin/python $(PIP_INSTALL) -r requirements-peers.lock
	$(PEERS_VENV)/bin/python $(PIP_INSTALL) --upgrade --no-deps --target $(PEERS_VENV)/transformers-5 -r requirements-peers-5.lock
	@touch $@

# --- versions ---------------------------------------------------------------------------------------------------------

# One lock for every supported Python and system, from uv's default index whatever this machine's settings are.
COMPILE := env -u UV_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS $(TOOLS)/bin/uv pip compile \
    --no-config --universal --python-version 3.10 --upgrade --no-annotate \
    --quiet --custom-compile-command "make lock"

lock: $(TOOLS)/.uv  ## resolve requirements*.txt to the newest versions into requirements*.lock
	$(COMPILE) requirements.txt -o requirements.lock
	$(COMPILE) requirements-dev.txt -o requirements-dev.lock
	$(COMPILE) -c requirements.lock -c requirements-dev.lock requirements-data.txt -o requirements-data.lock
	$(COMPILE) requirements-gpu.txt -o requirements-gpu.lock
	$(COMPILE) requirements-tpu.txt -o requirements-tpu.lock
	$(COMPILE) requirements-peers.txt -o requirements-peers.lock
	$(COMPILE) --no-emit-package numpy requirements-peers-5.txt -o requirements-peers-5.lock
	$(COMPILE) requirements-beam.txt -o requirements-beam.lock
	$(COMPILE) requirements-browser.txt -o requirements-browser.lock
	$(COMPILE) requirements-loggers.txt -o requirements-loggers.lock
	$(COMPILE) -c requirements.lock -c requirements-dev.lock requirements-notebooks.txt -o requirements-notebooks.lock

$(TOOLS)/.uv:
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python $(PIP_INSTALL) "uv>=0.5"
	@touch $@

clean:  ## remove the environments and caches
	rm -rf $(VENV) $(TPU_VENV) $(PEERS_VENV) $(BEAM_VENV) $(LOGGERS_VENV) $(TOOLS) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
