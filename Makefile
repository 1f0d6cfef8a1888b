# The whole developer manual: make demo, make test, make lint, make fix, make bench.
# Each makes .venv and installs by itself when needed.

PYTHON ?= python3
BIN := .venv/bin
DEV := .venv/installed-dev
USE := .venv/installed

.PHONY: demo test lint fix bench docs clean

demo: $(USE)
	$(BIN)/saeuron demo --out demo

test: $(DEV)
	$(BIN)/python -m pytest

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

fix: $(DEV)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(DEV)
	$(BIN)/python benchmarks/mini.py

docs: $(DEV)
	$(BIN)/python -m tests.cli_docs

clean:
	rm -rf .venv build dist demo src/*.egg-info

$(BIN)/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip

$(USE): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(USE)
