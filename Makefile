# `make book` and `make test` are all that is needed. Everything stays inside this folder.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
PIP_ARGS ?=
DEVICE ?= cpu
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
TOUR := notebooks/00_quick_tour.ipynb
export SELATTN_RUNS := $(CURDIR)/runs
# What a tensor leaves is kept for the next: handing it back to the system and taking it again costs a tenth of the time.
export MALLOC_MMAP_THRESHOLD_ := 33554432
export MALLOC_TRIM_THRESHOLD_ := 1073741824
unexport PYTHONDONTWRITEBYTECODE  # many processes of Python are started: each file is compiled for all of them

.PHONY: help env system book print executed notebooks replay lab rehearsal benchmarks lint unit whole check test clean
# Threads of two processes would wait for each other. Notebooks are compared by nbval where they are named.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
NBVAL := --nbval --nbval-sanitize-with=tests/notebooks/nbval_sanitize.cfg --nbval-cell-timeout=1800
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

env: $(STAMP)  ## make the environment in .venv (PIP_ARGS="..." goes to pip)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; say which to use: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile $(PIP_ARGS) -c constraints.txt -e '.[book,test]'
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' .venv/lib || true  # pip has one core do it; templates fail
	@touch $@

executed: env
	$(BIN)/selattn run $(TOUR) --out runs/notebooks --again
	$(BIN)/selattn run $(filter-out $(TOUR),$(NOTEBOOKS)) --out runs/notebooks

book: executed  ## run the quick tour, and notebooks that changed; build the book, print where it is
	$(BIN)/selattn book --notebooks runs/notebooks --out book

print: executed  ## the book on one page, to be printed or saved as a PDF from a browser
	$(BIN)/selattn book --print --notebooks runs/notebooks --out book

notebooks: env  ## re-execute the committed notebooks that are stale, in place (only if all succeed)
	$(BIN)/python -m selattn_lib.emoji.recipe.report book/_static/figure_one.png
	$(BIN)/selattn run $(NOTEBOOKS) --out runs/notebooks
	$(BIN)/selattn stabilise $(NOTEBOOKS:notebooks/%=runs/notebooks/%) --out notebooks

replay: env  ## run every notebook again, from nothing: do they print what they printed? (an hour)
	rm -rf runs/replay
	SELATTN_RUNS=$(CURDIR)/runs/replay $(BIN)/python -m pytest $(NBVAL) notebooks

lab: env  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

rehearsal: env  ## the paper's study on a full-size Stable Diffusion v1.4 with random weights, to a built book
	PYTHONPATH=tests/support $(BIN)/python tests/notebooks/rehearsal.py

system: env  ## find, or get, what tests need from the system: a browser, a font, Git
	$(BIN)/python tests/support/system_setup.py

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: env
	$(PYTEST) -n 2 -p no:nbval

# The tour comes first: its cells are one piece of work, for which the other process would wait at the end.
whole: system
	$(PYTEST) -n 2 $(NBVAL) $(TOUR) tests selattn_lib

# Lint keeps one core busy for a while, tests both: side by side they end sooner.
check:  ## lint, types, layers of the library, unit tests (two minutes)
	@$(MAKE) --no-print-directory -j 2 lint unit

test:  ## all of that, every chapter with small parameters, the book in a browser (nine minutes)
	@$(MAKE) --no-print-directory -j 2 lint whole

benchmarks: env  ## measure what capture costs (an idle machine, an hour or two; DEVICE=cuda: a GPU, three minutes)
	-$(BIN)/python -m pip install $(PIP_ARGS) -q --no-deps --target runs/peers daam==0.2.0 attention-map-diffusers==1.0.0
	PYTHONPATH=runs/peers $(BIN)/python tests/benchmarks/$(if $(filter cuda,$(DEVICE)),gpu,run).py
	$(BIN)/python tests/benchmarks/summary.py

clean:  ## remove the built book and the executed notebooks (studies in runs/ and .venv stay)
	rm -rf book/_build runs/notebooks
