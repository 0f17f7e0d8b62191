# make book    sets everything up, runs the default study, builds the book
# make test    sets everything up, runs the tests and the notebooks' regression
# make help    all commands
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# The backend of MLX on Linux: cpu, or cuda for an NVIDIA GPU. On macOS Metal comes with MLX.
ACCEL ?= cpu
ALIGN ?=
STUDY ?= organisms
MODEL ?= toy-mistral/b1
PRECISION ?= q4
A ?= organisms
B ?= smoke
BIN := .venv/bin

# What a user gives reaches commands through the environment alone, as CBA_<name>, and is neither
# expanded by make nor read as a command by the shell: a quote or a dollar in a path is a letter.
# MODELS, PRECISIONS, ITEMS, PROMPT and COMPUTE make another study of STUDY, with its results and book
# in results/NAME; RAW is a folder of records to import under the name STUDY. PROFILE says where the
# steps run: here, or with PROFILE=slurm as jobs of a cluster (workflow/profiles/slurm/README.md).
GIVEN := STUDY MODELS PRECISIONS ITEMS PROMPT COMPUTE ADAPTER NAME RAW MODEL PRECISION A B PROFILE ARCHIVE
$(foreach v,$(GIVEN),$(eval export CBA_$v := $$(value $v)))
unexport $(GIVEN)
# Words that some machines have in their environment.
$(foreach v,NAME ARCHIVE,$(if $(filter command,$(firstword $(origin $v))),,$(eval export CBA_$v :=)))
override BBQ_DIR := $(value BBQ_DIR)
export BBQ_DIR
export CBA_GOALS := $(MAKECMDGOALS)
export CBA_GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $v))),$v))
ifneq ($(value ACCEL),cpu)
ifneq ($(value ACCEL),cuda)
$(error error: ACCEL is neither cpu nor cuda)
endif
endif
ifneq ($(value ALIGN),)
ifneq ($(value ALIGN),only)
$(error error: ALIGN is not 'only', and nothing else is known)
endif
endif
# Jupyter would write its settings to the home folder, and warn about its own future.
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PYTHONWARNINGS := ignore::DeprecationWarning

ASKED := --models="$$CBA_MODELS" --precisions="$$CBA_PRECISIONS" --items="$$CBA_ITEMS" \
	--prompt="$$CBA_PROMPT" --compute="$$CBA_COMPUTE" --name="$$CBA_NAME" -- "$$CBA_STUDY"

.PHONY: help setup variables book test lint pages pdf deposit bench organisms estimate rehearse cell compare doctor lock clean

help: variables ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

variables:
	@$(PYTHON) workflow/check_variables.py

# A goal that is none of these; files that make would look for have their names with a dot or slash.
.DEFAULT:
	@$(PYTHON) workflow/check_variables.py $@

setup: variables .venv/ready-$(ACCEL) ## A virtual environment with everything, pinned

LOCK := requirements$(if $(filter cuda,$(ACCEL)),-cuda).lock

.venv/ready-$(ACCEL): pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:3]; sys.exit(0 if (3, 11, 5) <= v < (3, 15) else "error: Python 3.11.5 to 3.14 is needed (for what is pinned), and $(PYTHON) is %d.%d.%d; say which with make PYTHON=<python>" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing pinned packages into .venv, each checked by its hash (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f .venv/ready-* && touch $@

lock: setup ## Write the locks and environment.yml anew from the pins of pyproject.toml
	@$(BIN)/python workflow/lock.py

book: setup ## Run STUDY (default: organisms) or MODELS, PRECISIONS, ITEMS of it, or import RAW=<folder>
	@$(BIN)/cba run --raw="$$CBA_RAW" --profile="$$CBA_PROFILE" $(ASKED)

pages: setup ## Build the book from the committed results alone: no model is run
	@$(BIN)/cba html organisms
	@echo "The book: open _build/html/index.html"

pdf: setup ## The book of STUDY as one file to read on paper; needs a Chromium or Chrome
	@$(BIN)/cba pdf --raw="$$CBA_RAW" --profile="$$CBA_PROFILE" $(ASKED)

deposit: setup ## Pack STUDY to deposit: data, code, provenance and book as an RO-Crate (ARCHIVE=<file>.zip)
	@$(BIN)/cba deposit --archive="$$CBA_ARCHIVE" -- "$$CBA_STUDY"

# A process a core, which takes whole files; more than four would want more memory than time.
SPREAD := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: export OMP_NUM_THREADS := 1
test: pages ## Tests, and nbval over every report notebook
	@$(BIN)/python -m pytest $(SPREAD)
	@$(BIN)/python -m pytest $(SPREAD) --nbval -p no:cacheprovider notebooks/[2-9]*.ipynb
	@echo "All tests passed, and every report notebook gave its committed outputs again"

lint: setup ## Format, lint and types, as CI asks for them
	@$(BIN)/ruff format --check --quiet . || { echo "error: run .venv/bin/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary

estimate: setup ## What STUDY would run, and the memory, disk and time it would take
	@$(BIN)/cba estimate $(ASKED)

rehearse: setup ## STUDY from a hub on loopback, with random weights: what the real run will meet
	@$(BIN)/cba rehearse --models="$$CBA_MODELS" --precisions="$$CBA_PRECISIONS" --items="$$CBA_ITEMS" -- "$$CBA_STUDY"

cell: setup ## One cell by hand: MODEL=toy-mistral/b1 PRECISION=q4 [ADAPTER=toy-mistral/b1-a1] [ITEMS=200]
	@$(BIN)/cba cell --items="$$CBA_ITEMS" --prompt="$$CBA_PROMPT" --compute="$$CBA_COMPUTE" --adapter="$$CBA_ADAPTER" -- "$$CBA_MODEL" "$$CBA_PRECISION"

compare: setup ## Two studies that were run, side by side: A=organisms B=smoke
	@$(BIN)/cba compare -- "$$CBA_A" "$$CBA_B"

doctor: setup ## What this machine is, and which studies it can run
	@$(BIN)/cba doctor

bench: setup ## Time scoring against the published loop and PyTorch (installs PyTorch; ~15 minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.lock
	@$(BIN)/python -m benchmarks

# A run that was stopped goes on where it was; what this recipe made already is kept.
organisms: setup ## Train the organisms anew (hours on a CPU; needs PyTorch beside the project's packages)
	@$(BIN)/python -m organisms.recipe ancestors && $(BIN)/python -m organisms.recipe plant \
	  && $(BIN)/python -m organisms.recipe assemble

clean: variables ## Remove what was built, not what was computed
	@rm -rf _build results/*/book
	@echo "Removed the built books"
