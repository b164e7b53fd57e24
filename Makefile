# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-floors benchmark lint format clean

$(READY): setup.py
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed; name one: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	touch $(READY)

# Pre-trains on the built-in scenes in under 5 minutes on 2 CPU cores, then compares with the untrained encoder.
demo: $(READY)
	$(BIN)/python examples/pretrain.py examples/configs/demo.yaml

# Lint, then every test, the slow ones too.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow"

# The oldest versions that setup.py allows, in an environment of their own. Give it Python 3.10.
FLOORS_VENV ?= .venv-floors
test-floors:
	$(PYTHON) -m venv $(FLOORS_VENV)
	$(FLOORS_VENV)/bin/python -m pip install --disable-pip-version-check -e ".[dev]" -c tests/floors.txt
	$(FLOORS_VENV)/bin/python -m pytest

# Every benchmark, short; `python -m benchmarks.NAME` measures one in full.
BENCHMARKS := step input end_to_end scaling inference time_to_accuracy
benchmark: $(READY)
	for name in $(BENCHMARKS); do \
		$(BIN)/python -m benchmarks.$$name --effort short --results_dir runs/benchmarks || exit 1; \
	done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(FLOORS_VENV) build dist src/*.egg-info
