# The two commands of the README, and what CI adds to them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet

# A trial or a test computes with one thread; tests run beside each other instead. They take one process more than there
# are cores, since some tests wait for processes that they start. Compiled modules are kept, also where the environment
# says otherwise, as containers do: else each of these processes would compile them all again.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=
WORKERS ?= $(shell $(PYTHON) -c "import os; print(1 + (os.cpu_count() or 1))")

STRICT_SITE := -m sphinx -W --keep-going -q -b html

.PHONY: bench test lowest oracles check docs dist benchmark benchmark-gpu parity clean

# Each stamp says what is installed in .venv; installing is done again only when the package's metadata change.
# An unfit Python, or an installation that fails, leaves no half-made .venv behind.
$(VENV)/.installed-run: setup.cfg pyproject.toml
	@$(PYTHON) tests/fit_python.py
	@if [ -d $(VENV) ]; then $(PIP) --editable .; else \
		{ $(PYTHON) -m venv $(VENV) && $(PIP) --upgrade pip && $(PIP) --editable .; } || { rm -rf $(VENV); exit 1; }; fi
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed-run
	$(PIP) --editable ".[test]"
	touch $@

$(VENV)/.installed-benchmark: $(VENV)/.installed-test
	$(PIP) --editable ".[test,benchmark]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-run
	$(PIP) --editable ".[docs]"
	touch $@

# Compares SRMIL and ABMIL on the simulated demo slides and says where tables and figures are.
bench: $(VENV)/.installed-run
	$(BIN)/mil-zoo bench --models srmil,abmil

# Every file of tests goes to one process, so that what its tests share is made once; the longest start first.
test: $(VENV)/.installed-test
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The same with the lowest version of every dependency that setup.cfg allows, in an environment of its own.
lowest:
	$(PYTHON) -m venv build/lowest
	$(PYTHON) tests/lowest_versions.py > build/lowest/constraints.txt
	build/lowest/bin/python -m pip install --quiet --upgrade pip
	build/lowest/bin/python -m pip install --quiet --constraint build/lowest/constraints.txt --editable ".[test]"
	$(ONE_THREAD) build/lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Survival statistics beside lifelines and scikit-survival, in an environment of their own: they hold back pandas and
# scikit-learn.
oracles:
	$(PYTHON) -m venv build/oracles
	build/oracles/bin/python -m pip install --quiet lifelines scikit-survival pytest
	PYTHONPATH=. build/oracles/bin/python -m pytest --noconftest -c /dev/null --rootdir . -p no:cacheprovider \
		tests/survival/test_libraries.py

# Style, types, import directions, the built wheel in an environment of its own, and the site without its notebooks.
check: $(VENV)/.installed-test $(VENV)/.installed-docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/check_wheel.py
	MIL_ZOO_DOCS_NOTEBOOKS=off $(ONE_THREAD) $(BIN)/python $(STRICT_SITE) -E docs docs/_build/check
	$(BIN)/python docs/check_offline.py docs/_build/check

# The site, its notebooks executed, in docs/_build/html. A warning fails it, and a page that would load from a network.
docs: $(VENV)/.installed-docs
	$(ONE_THREAD) $(BIN)/python $(STRICT_SITE) docs docs/_build/html
	$(BIN)/python docs/check_offline.py docs/_build/html

# Wheel and sdist in dist/, built twice: the same bytes each time, or it fails.
dist: $(VENV)/.installed-test
	$(BIN)/python tests/check_reproducible.py dist

# Speed and memory of kernels, graphs and steps: a table and plots under benchmarks/results/<cpu|gpu>-<machine>/.
benchmark: $(VENV)/.installed-benchmark
	$(BIN)/python benchmarks/run.py

# The same for a CUDA device. Builds and installs nothing: the packages of $(PYTHON) (mil-zoo[benchmark] and its torch).
benchmark-gpu:
	$(PYTHON) benchmarks/run.py --device cuda

# How near every aggregator comes to its authors' code, as the tests compare it.
parity: $(VENV)/.installed-test
	$(ONE_THREAD) $(BIN)/python -m pytest tests/aggregators tests/survival tests/tasks --parity benchmarks/results/parity.md

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
