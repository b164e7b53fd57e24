# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests run in this many processes. Each computes on one thread, or they would wait for one another.
JOBS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test test-fast test-floors pytest benchmark lint types docs format clean

$(READY): setup.py
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed; name one: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev]"
	touch $(READY)

# In under 5 minutes on 2 CPU cores: pre-trains on the built-in scenes, compares with the untrained encoder, and writes
# a page about the groups that it found.
demo: $(READY)
	$(BIN)/sparsejepa pretrain demo --overwrite_output_dir true
	$(BIN)/sparsejepa explain runs/demo --dataset textured-scenes --split test --max_examples 500

# Lint, types, documentation, then every test, the slow ones too. The tests come last: CI reads their closing line.
test: lint types docs pytest

# The tools that tests run the models with.
$(VENV)/.ecosystem: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[dev,ecosystem]"
	touch $(VENV)/.ecosystem

pytest: $(VENV)/.ecosystem
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadscope

test-fast: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadscope -m "not slow"

# The oldest versions that setup.py allows, in an environment of their own. Give it Python 3.10.
FLOORS_VENV ?= .venv-floors
test-floors:
	$(PYTHON) -m venv $(FLOORS_VENV)
	$(FLOORS_VENV)/bin/python -m pip install --disable-pip-version-check -e ".[dev]" -c tests/floors.txt
	$(ONE_THREAD) $(FLOORS_VENV)/bin/python -m pytest -n $(JOBS) --dist loadscope

# Every benchmark, short; `python -m benchmarks.NAME` measures one in full.
BENCHMARKS := step input end_to_end scaling inference time_to_accuracy
benchmark: $(READY)
	for name in $(BENCHMARKS); do \
		$(BIN)/python -m benchmarks.$$name --effort short --results_dir runs/benchmarks || exit 1; \
	done

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# The pages, into build/docs; a broken link or a docstring that cannot be read is an error. Needs no network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(FLOORS_VENV) .mypy_cache build dist src/*.egg-info
