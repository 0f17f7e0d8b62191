# make book    sets everything up, runs the default study, builds the book
# make test    sets everything up, runs the tests and the notebooks' regression
# make help    all commands
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
STUDY ?= organisms
# The backend of MLX on Linux: cpu, or cuda for an NVIDIA GPU. On macOS Metal comes with MLX.
ACCEL ?= cpu
ALIGN ?=
# Any of the first three makes another study of STUDY, with its results and book in results/NAME.
# ITEMS is a number of items, or a folder of BBQ's JSONL files, or a hub data set.
MODELS ?=
PRECISIONS ?=
ITEMS ?=
NAME ?= my-$(STUDY)
MODEL ?= mistral/aligned-s1
PRECISION ?= q4
A ?= organisms
B ?= smoke
BIN := .venv/bin
export BBQ_DIR
# Jupyter would write its settings to the home folder, and warn about its own future.
export JUPYTER_PLATFORM_DIRS := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PYTHONWARNINGS := ignore::DeprecationWarning

CHANGED := $(if $(RAW),,$(strip $(MODELS)$(PRECISIONS)$(ITEMS)))
ifeq ($(origin NAME)$(CHANGED),command line)
$(error NAME names a study that differs in MODELS, PRECISIONS or ITEMS: give one of them)
endif
RUN := $(if $(CHANGED),$(NAME),$(STUDY))
STUDY_FILE := $(if $(CHANGED),results/$(NAME)/study.yml,config/$(STUDY).yml)
CHANGES := --models '$(MODELS)' --precisions '$(PRECISIONS)' --items '$(ITEMS)'
BOOK := $(if $(filter organisms,$(RUN)),.,results/$(RUN)/book)

.PHONY: help setup book test pages pdf bench organisms estimate cell compare doctor clean

help: ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

setup: .venv/ready-$(ACCEL) ## A virtual environment with everything, pinned

.venv/ready-$(ACCEL): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "error: Python 3.11 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; say which with make PYTHON=<python>")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing pinned packages into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[$(ACCEL),dev]'
	@rm -f .venv/ready-* && touch $@

book: setup ## Run STUDY (default: organisms) or MODELS, PRECISIONS, ITEMS of it, or import RAW=<folder>
	@$(BIN)/python -c 'import cba_utils; print(cba_utils.BLAS)'
	$(if $(CHANGED),@$(BIN)/python -m cba_utils.study.protocol config/$(STUDY).yml $(CHANGES) --write $(STUDY_FILE))
	@$(BIN)/python -m cba_utils.study.workflow $(STUDY_FILE) \
		$(if $(RAW),--raw '$(RAW)' --items '$(or $(ITEMS),$(BBQ_DIR))')
	@echo "The book of study '$(RUN)': open $(BOOK)/_build/html/index.html"

pages: setup ## Build the book from the committed results alone: no model is run
	@$(BIN)/jupyter-book build . -W -n --keep-going --quiet
	@echo "The book: open _build/html/index.html"

pdf: $(if $(filter .,$(BOOK)),pages,book) ## The book as one file to read on paper; needs a Chromium or Chrome
	@$(BIN)/python -m cba_utils.telling.pdf $(BOOK)/_build/html $(BOOK)/_build/book.pdf
	@echo "The book on paper: $(BOOK)/_build/book.pdf"

test: pages ## Tests, and nbval over every report notebook
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -m pytest
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval -p no:cacheprovider notebooks/[2-9]*.ipynb
	@echo "All tests passed, and every report notebook gave its committed outputs again"

estimate: setup ## What STUDY would run, and the memory, disk and time it would take
	@$(BIN)/python -m cba_utils.study.protocol config/$(STUDY).yml $(if $(CHANGED),$(CHANGES))

cell: setup ## One cell by hand: MODEL=mistral/aligned-s1 PRECISION=q4 [ITEMS=200]
	@$(BIN)/python -m cba_utils.study.notebooks cell '$(MODEL)' '$(PRECISION)' '$(ITEMS)'

compare: setup ## Two studies that were run, side by side: A=organisms B=smoke
	@$(BIN)/python -m cba_utils.telling.compare '$(A)' '$(B)'

doctor: setup ## What this machine is, and which studies it can run
	@$(BIN)/python -m cba_utils.study.doctor

bench: setup ## Time scoring against the published loop and PyTorch (installs PyTorch; ~15 minutes)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[$(ACCEL),dev,bench]'
	@$(BIN)/python -m benchmarks

# A run that was stopped goes on where it was; what this recipe made already is kept.
organisms: setup ## Train the organisms anew (most of a day on a CPU); ALIGN=only: the alignments alone (hours)
	@OPENBLAS_NUM_THREADS=$${OPENBLAS_NUM_THREADS:-$$(getconf _NPROCESSORS_ONLN)} $(BIN)/python -m organisms.recipe $(if $(ALIGN),--only align)

clean: ## Remove what was built, not what was computed
	@rm -rf _build results/*/book
	@echo "Removed the built books"
