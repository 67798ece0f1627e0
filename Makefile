# The environment makes itself: .venv in layers, each with a stamp that depends on pyproject.toml and constraints.txt,
# so that a second run sets nothing up. The demo needs the first layer only, which has no torch.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PINNED := $(INSTALL) --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
VERSIONS := pyproject.toml constraints.txt

# One thread: on a busy machine of few cores a second one costs more than it gives.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test check format bench docs pin clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^\([a-z]*\):.*## /make \1\t/p' $(MAKEFILE_LIST)

demo: .venv/demo.stamp  ## prune two real models, with proof (under three minutes)
	$(BIN)/python -m models.demo

check: .venv/dev.stamp  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check  ## the checks, then the tests
	$(BIN)/pytest -x -q --numprocesses 2 --dist loadfile

format: .venv/dev.stamp  ## rewrite the code as the checks want it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/bench.stamp  ## speed of the analysis, peers on the same models, and a 6 GB model (needs 12 GB of disk)
	$(BIN)/python -m tools.bench_analysis
	$(BIN)/python -m tools.bench_onnxsim
	$(BIN)/python -m tools.bench_torch_pruning
	$(BIN)/python -m tools.bench_large

docs: .venv/docs.stamp  ## the site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove the environment and everything built
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/demo.stamp: $(VERSIONS)
	$(PYTHON) -m venv .venv
	$(PINNED) --editable '.[demo]'
	@touch $@

# torch goes in first and by its exact version: where a CPU build of it is at hand, a range would pass it over. The OCR
# package goes in without what it asks for, which is a second OpenCV that needs a display.
.venv/dev.stamp: .venv/demo.stamp
	$(INSTALL) $(TORCH)
	$(PINNED) --editable '.[dev]'
	$(PINNED) --no-deps rapidocr-onnxruntime
	@touch $@

.venv/bench.stamp: .venv/dev.stamp
	$(PINNED) --editable '.[bench]'
	$(PINNED) --no-deps torch-pruning
	@touch $@

.venv/docs.stamp: .venv/demo.stamp
	$(PINNED) --editable '.[docs]'
	@touch $@

pin:  ## write constraints.txt anew: the newest version of everything, but for torch, which is raised by hand
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(INSTALL) $(TORCH)
	$(INSTALL) --upgrade --editable '.[dev,bench,docs]' $(TORCH)
	$(INSTALL) --no-deps rapidocr-onnxruntime torch-pruning
	echo "# Exact versions of all that the Makefile installs; written by make pin." > constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' >> constraints.txt
