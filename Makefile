# One folder holds everything that is installed: .venv. `make clean` removes it together with all outputs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak lint format docs bench learn clean

help:  ## List the commands
	@echo "handdata: from hand datasets to annotated shards to a trained model"
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## Create .venv and install the pinned dependencies (about 4 minutes, once)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "== Setting up $(VENV) with $$($(PYTHON) --version) (once; about 4 minutes) =="
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "handdata needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 setup" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@sh docker/hand_model.sh $(BIN)/python $(VENV)/share/handdata/weights
	@touch $@
	@echo "== Installed. Try: $(BIN)/handdata --help =="

demo: $(INSTALLED)  ## Run the whole pipeline on the synthetic source and show pictures (about 2 minutes)
	@$(BIN)/handdata demo

test: $(INSTALLED)  ## Run the tests on two cores (about 12 minutes)
	@$(BIN)/python -m pytest -m "not soak" -n 2

soak: $(INSTALLED)  ## Run the long checks
	@$(BIN)/python -m pytest -m soak --timeout 7200

lint: $(INSTALLED)  ## Check format, style, types and import rules
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(INSTALLED)  ## Format the code and apply safe fixes
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

docs: $(INSTALLED)  ## Write the parts of docs/ that are made from the code
	@$(BIN)/python -m handdata.schemas.dictionary docs/shards.md
	@$(BIN)/python -m handdata.pictures.joints docs/joints.svg

bench: $(INSTALLED)  ## Run the benchmarks (each compares with a named peer in one run)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

learn: $(INSTALLED)  ## Repeat the measured learning run of docs/results (about 75 minutes on two cores; resumable)
	@test -e learning-run/synthetic || $(BIN)/handdata synth --out learning-run/synthetic --identities 768 --sequences 768 --frames 8 --fps 5 --cameras 1 --size 192 --seed 1
	@$(BIN)/handdata ingest --source synthetic --root learning-run/synthetic --workspace learning-run/workspace
	@$(BIN)/handdata annotate --masks grabcut --image-size 128 --crop stable --workspace learning-run/workspace
	@$(BIN)/handdata train --preset carried-128 --run learn --resume --gpus 0 $(if $(STEPS),--steps $(STEPS)) --workspace learning-run/workspace
	@$(BIN)/handdata evaluate --run learn --split test --pairs 400 --out learning-run/results --workspace learning-run/workspace

clean:  ## Remove .venv, caches and the demo's outputs
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis workspace demo-output learning-run
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
