# The words that people and CI use alike. `make demo` and `make test` need only Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# one thread: two are far slower on work this small
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help venv demo test check bench torture dist docs clean

help:
	@echo "make demo    prune on embedded data, with and without AP, and write runs/demo/report.html"
	@echo "make test    the whole suite"
	@echo "make check   style and types"
	@echo "make bench   the speed benchmarks (minutes; results in benchmarks/results)"
	@echo "make torture kill runs, fill disks, damage files (minutes; KILLS=20 INPUTS=100000: hours)"
	@echo "make dist    wheel and sdist, installed and run in a clean environment"
	@echo "make docs    the site: docs/_build/html/index.html"
	@echo "make clean   remove what was built"

venv: $(STAMP)

# a warm call runs no pip: the stamp is younger than everything the environment depends on
$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; write make PYTHON=python3.12, say"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt \
		--editable '.[dev,fast,onnx,protein,adaptive,diffusers,dask,ray,tensorboard,frames]'
	@touch $@

demo: venv
	$(ONE_THREAD) $(BIN)/rectified demo

test: venv
	$(ONE_THREAD) HF_HUB_OFFLINE=1 MPLBACKEND=Agg HOME=$$(mktemp -d) $(BIN)/python -m pytest -n auto --maxprocesses 4

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: venv
	$(BIN)/python -m benchmarks

KILLS ?= 3
INPUTS ?= 300
torture: venv
	$(ONE_THREAD) HF_HUB_OFFLINE=1 HOME=$$(mktemp -d) $(BIN)/python -m tests.torture.kill --kills $(KILLS)
	$(ONE_THREAD) HF_HUB_OFFLINE=1 HOME=$$(mktemp -d) $(BIN)/python -m tests.torture.fuzz --inputs $(INPUTS)

# the Pythons to try the wheel with, those of them that are here
PYTHONS ?= python3.11 python3.12 python3.13
dist: venv
	$(BIN)/python -m tests.torture.distribution $(PYTHONS)

# its packages are installed when it is first asked for: `make test` needs none of them
DOCS := $(VENV)/.docs
$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[docs]'
	@touch $@

# a link that leads nowhere is an error
docs: $(DOCS)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs: docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist docs/_build crashes
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
