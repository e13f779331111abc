# One folder for the environment, one command for each thing a newcomer wants.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# one more than cores: tests of faults wait, for a disk and for processes that they have started
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(8, 1 + (os.cpu_count() or 1)))")

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

faults: setup
	FEATURECACHE_FAULTS=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto tests/faults

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	for question in benchmarks/[a-z]*.py; do case $$question in *train_*) ;; *) $(BIN)/python $$question || exit 1;; esac; done
