# `make book` and `make test` are all that is needed; everything stays inside this folder.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.complete
PIP_ARGS ?=
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))
export SELATTN_RUNS := $(CURDIR)/runs

.PHONY: help env book print notebooks replay lab rehearsal benchmarks test clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

env: $(STAMP)  ## make the environment in .venv (PIP_ARGS="..." goes to pip)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11; say which to use: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[book,test]'
	@touch $@

book: env  ## run the notebooks that changed since they were committed, build the book, print where it is
	$(BIN)/selattn run $(NOTEBOOKS) --out runs/notebooks
	$(BIN)/selattn book --notebooks runs/notebooks --out book

print: env  ## the book on one page, to be printed or saved as a PDF from a browser
	$(BIN)/selattn run $(NOTEBOOKS) --out runs/notebooks
	$(BIN)/selattn book --print --notebooks runs/notebooks --out book

notebooks: env  ## re-execute the committed notebooks that changed, in place (only if all succeed)
	$(BIN)/python -m selattn_lib.emoji.report book/_static/figure_one.png
	$(BIN)/selattn run $(NOTEBOOKS) --out runs/notebooks
	$(BIN)/selattn stabilise $(NOTEBOOKS:notebooks/%=runs/notebooks/%) --out notebooks

replay: env  ## run every committed notebook again: do they print what they printed? (half an hour)
	$(BIN)/python -m pytest notebooks

lab: env  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

rehearsal: env  ## the paper's study on a full-size Stable Diffusion v1.4 with random weights, to a built book
	$(BIN)/python tests/rehearsal.py

test: env  ## lint, types, unit tests, notebooks, book and browser tests (`make replay`: all notebooks in full)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2  # threads of two processes would wait for each other

benchmarks: env  ## measure what capture costs (an idle machine, an hour or two; a second run goes on)
	-$(BIN)/python -m pip install $(PIP_ARGS) -q --no-deps --target runs/peers daam==0.2.0 attention-map-diffusers==1.0.0
	PYTHONPATH=runs/peers $(BIN)/python tests/benchmarks/run.py

clean:  ## remove the built book and the executed notebooks (studies in runs/ and .venv stay)
	rm -rf book/_build runs/notebooks
