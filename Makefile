# The two commands of the README, and what CI adds to them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: bench test check benchmark benchmark-gpu parity clean

# Installs into .venv; done again only when the package's metadata change.
$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test,benchmark]"
	touch $@

# Compares SRMIL and ABMIL on the simulated demo slides and says where tables and figures are.
bench: $(VENV)/.installed
	$(BIN)/mil-zoo bench --models srmil,abmil

test: $(VENV)/.installed
	$(BIN)/python -m pytest

# Style, types, import directions, and the built wheel in an environment of its own.
check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_wheel.py

# Speed and memory of kernels, graphs and steps: a table and plots under benchmarks/results/<cpu|gpu>-<machine>/.
benchmark: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py

# The same for a CUDA device. Builds and installs nothing: the packages of $(PYTHON) (mil-zoo[benchmark] and its torch).
benchmark-gpu:
	$(PYTHON) benchmarks/run.py --device cuda

# How near every aggregator comes to its authors' code, as the tests compare it.
parity: $(VENV)/.installed
	$(BIN)/python -m pytest tests/aggregators --parity benchmarks/results/parity.md

clean:
	rm -rf $(VENV) build dist *.egg-info
