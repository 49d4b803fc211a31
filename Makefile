# make study   from a fresh clone to the first report
# make test    what CI runs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two pytest workers, each on one thread of XLA: faster than one on two.
JOBS ?= 2

.PHONY: study test test-all lint zoo colabs clean

study: $(VENV)/installed
	$(BIN)/vitscale study patchify --scale quick

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow"

test-all: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "vitscale needs Python 3.11 or newer: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv module: apt-get install python3-venv"; exit 2; }

$(VENV)/installed: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/installed

zoo: $(VENV)/installed-dev
	$(BIN)/python -m vitscale.zoo --write

colabs: $(VENV)/installed-dev
	$(BIN)/jupytext --to ipynb colabs/*.py

clean:
	rm -rf $(VENV) build *.egg-info
