# igpt from a bare checkout: `make book` builds the book, `make test` runs the tests. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUNTIME := node_modules/.ready
# The model of the book's live panel: a name, or a folder of weights.
LIVE ?= laptop-l
# A folder of the reader's own records, shown in columns of their own.
RECORDS ?=
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
HTML := book/_build/html

.PHONY: help install book test lint serve plan clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' Makefile | expand -t 16

install: $(READY) $(RUNTIME)  ## the environment, in .venv, for book and tests

# torch first, with what its build for this machine needs; then every other pin as it stands. Nothing is left to a
# resolver (an old pip's went on for minutes), and `pip check` says whether the pins belong together.
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "igpt needs Python 3.11 or newer, $(PYTHON) is older: run make PYTHON=python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make environments: install the package python3-venv" >&2; exit 2; }
	@echo "installing the pinned packages into $(VENV) (about 2 GB, a few minutes)"
	@$(PIP) install -c constraints.txt torch
	@$(PIP) install --no-deps -r constraints.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -m pip check
	@touch $@

# What the live panel runs on; without npm the book is whole but for the panel.
$(RUNTIME): package.json package-lock.json
	@if command -v npm >/dev/null; then npm ci --ignore-scripts --no-audit --no-fund --silent && touch $@; \
	  else echo "npm is not here: the book will be without its live panel" >&2; fi

book: $(READY) $(RUNTIME)  ## run the tiny tier and build the book
	@IGPT_RECORDS='$(RECORDS)' $(BIN)/python book/_ext/build.py --model '$(LIVE)'
	@echo "the book is built: open $(HTML)/index.html, or run make serve"

# The book first, which takes all cores. Then three tests at once: much of their time is waiting, for a scheduler or a browser.
test: book  ## build the book and run all tests
	@IGPT_BOOK_IS_BUILT=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 3 --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## ruff, mypy, import contracts, spelling, clean notebooks
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(BIN)/nbstripout --verify --keep-id notebooks/*.ipynb

serve: $(READY)  ## show the built book on localhost, port 8000
	@test -d $(HTML) || { echo "there is no book yet: run make book" >&2; exit 2; }
	@echo "the book is at http://127.0.0.1:8000"
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory $(HTML) 2>/dev/null

plan: $(READY)  ## list every cell: fresh, stale or missing, and why
	@$(BIN)/igpt plan --why

clean:  ## remove the environment, the runs and the built book; published records stay
	rm -rf $(VENV) node_modules runs book/_build book/figures book/live *.egg-info
