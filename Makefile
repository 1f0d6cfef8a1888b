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

bench: $(DEV)
	$(BIN)/python benchmarks/mini.py

# MiniCanvas from nothing, with its SAEs, profiles and settings: about four hours on 2 cores, resumable
W := src/saeuron/mini/weights
B := build/mini
STYLE_BLOCKS := --hookpoint unet.down_blocks.1.attentions.0 --hookpoint unet.down_blocks.1.attentions.1 \
	--hookpoint unet.up_blocks.1.attentions.2
OBJECT_BLOCKS := --hookpoint unet.down_blocks.2.attentions.0 --hookpoint unet.mid_block.attentions.0
mini: $(DEV)
	$(BIN)/python -m saeuron.mini.build --work $(B)
	$(BIN)/saeuron train --out $(B)/sae $(STYLE_BLOCKS) $(OBJECT_BLOCKS) --count 442 --expansion 8 --k 8 --lr 1e-3 \
		--vectors 1024 --epochs 4 --buffer 131072 --batch 34 --steps 20 --half
	$(BIN)/saeuron profile --sae $(B)/sae $(STYLE_BLOCKS) --kind style --each 1 --batch 34 --half --out $(B)/profiles/styles
	$(BIN)/saeuron profile --sae $(B)/sae $(OBJECT_BLOCKS) --kind object --each 1 --batch 26 --half --out $(B)/profiles/objects
	$(BIN)/saeuron sweep --kind style --shared --together $(STYLE_BLOCKS) --sae $(B)/sae --profiles $(B)/profiles \
		--features 2 --features 3 --features 4 --multiplier -0.4 --multiplier -0.7 --multiplier -1 --batch 50 --out $(B)/sweep
	$(BIN)/saeuron sweep --kind object --together $(OBJECT_BLOCKS) --sae $(B)/sae --profiles $(B)/profiles \
		--features 1 --features 2 --features 4 --multiplier -0.5 --multiplier -1 --multiplier -2 --batch 45 \
		--out $(B)/sweep
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
