# make demo   sets up everything, then runs the main job on the embedded model
# make test   sets up everything, then format, lint, types and the whole test suite
# JOBS=N tests in N processes (2), each with one thread.
# VENV=DIR puts the virtual environment elsewhere. PIP_TORCH="--index-url ADDRESS" takes PyTorch
# from another index, such as the one of its CPU builds.

VENV ?= .venv
PYTHON ?= python3
PIP_TORCH ?=
JOBS ?= 2
BIN := $(VENV)/bin

.PHONY: demo test benchmarks clean

demo: $(VENV)/.installed
	$(BIN)/python -m circuits.patch --task error_type

test: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

benchmarks: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.patching
	$(BIN)/python -m benchmarks.patching_pairs
	$(BIN)/python -m benchmarks.saes
	$(BIN)/python -m benchmarks.attribution
	$(BIN)/python -m benchmarks.attribution_memory
	$(BIN)/python -m benchmarks.attribution_audit
	$(BIN)/python -m benchmarks.circuits
	$(BIN)/python -m benchmarks.thoughts
	$(BIN)/python -m benchmarks.predict_null
	$(BIN)/python -m benchmarks.digits
	$(BIN)/python -m benchmarks.tracks

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: the pinned version, not whatever another package would accept.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_TORCH) torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
