# One folder for the environment, one command for each thing a newcomer wants.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup demo test faults lint bench

$(BIN)/featurecache: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

setup: $(BIN)/featurecache

demo: setup
	$(BIN)/featurecache demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

faults: setup
	FEATURECACHE_FAULTS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto tests/faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	for question in benchmarks/[a-z]*.py; do case $$question in *train_*) ;; *) $(BIN)/python $$question || exit 1;; esac; done
