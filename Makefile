# One folder for the environment, one command for each thing a newcomer wants.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: setup demo test lint bench

$(BIN)/featurecache:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable ".[dev]"

setup: $(BIN)/featurecache

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
