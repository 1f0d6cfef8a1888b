# The whole developer manual: make demo, make test, make lint, make fix, make bench.
# Each makes .venv and installs by itself when needed.

PYTHON ?= python3
BIN := .venv/bin
DEV := .venv/installed-dev
USE := .venv/installed

.PHONY: demo test lint fix bench mini docs clean

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

# the full removal table takes half an hour more: .venv/bin/python benchmarks/removals.py
bench: $(DEV)
	for name in mini train_step edit profile stream canvas; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# MiniCanvas from nothing, with its SAEs, profiles and settings: about four hours on 2 cores, resumable
W := src/saeuron/mini/weights
B := build/mini
BLOCKS := down_blocks.1.attentions.0 down_blocks.1.attentions.1
BOTH := $(BLOCKS:%=--hookpoint unet.%.transformer_blocks.0.attn2)
STYLES := $(BOTH) $(patsubst %,--hookpoint unet.up_blocks.1.attentions.%.transformer_blocks.0.attn2,0 1 2)
OBJECTS := $(BOTH) --hookpoint unet.down_blocks.2.attentions.0.transformer_blocks.0.attn2
mini: $(DEV)
	$(BIN)/python -m saeuron.mini.build --work $(B)
	$(BIN)/saeuron train --out $(B)/sae $(STYLES) --hookpoint $(lastword $(OBJECTS)) --count 442 --expansion 2 --k 8 \
		--lr 1e-3 --vectors 1024 --epochs 3 --buffer 65536 --batch 34 --half
	$(BIN)/saeuron profile --sae $(B)/sae $(STYLES) --kind style --each 1 --batch 34 --half --out $(B)/profiles/styles
	$(BIN)/saeuron profile --sae $(B)/sae $(OBJECTS) --kind object --each 1 --batch 34 --half --out $(B)/profiles/objects
	$(BIN)/saeuron sweep --kind style --shared --together $(STYLES) --sae $(B)/sae --profiles $(B)/profiles \
		--features 16 --multiplier -0.3 --multiplier -0.5 --batch 50 --out $(B)/sweep
	$(BIN)/saeuron sweep --kind object --together $(OBJECTS) --sae $(B)/sae --profiles $(B)/profiles \
		--features 8 --features 16 --multiplier -0.3 --multiplier -0.5 --batch 45 --out $(B)/sweep
	rm -rf $(W)/sae $(W)/profiles
	mkdir -p $(W)/sae
	cp -r $(B)/sae/unet.* $(W)/sae/
	cp -r $(B)/profiles $(W)/
	cp $(B)/sweep/settings.json $(W)/settings.json

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
