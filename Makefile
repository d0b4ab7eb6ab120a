# Two commands do all the set-up: `make demo` shows the tool, `make test` checks it.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test test-all test-versions lint install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/budget-search --task demo --model demo --output demo-smaller

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One torch thread per test process: two processes on two cores. Tests of one xdist_group share a process, and so its
# imports of all architectures.
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=15

test: lint
	$(PYTEST) -m "not slow"

# Also the tests that kill searches, fill disks, start clusters and build every architecture.
test-all: lint
	$(PYTEST)

# The core tests with the oldest and the newest libraries allowed, each in a new environment of about 6 GB.
test-versions:
	$(PYTHON) -m tests.versions oldest
	$(PYTHON) -m tests.versions newest

clean:
	rm -rf $(VENV) demo-smaller .mypy_cache .ruff_cache .pytest_cache
