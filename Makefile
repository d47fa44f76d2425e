# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -c tests/pytest.ini --rootdir=tests --import-mode=importlib

.PHONY: setup demo test test-contract test-long test-kernels test-faults test-slow lint types systems bench clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "bodyplan needs Python 3.11 or newer: got $$($(PYTHON) --version); set PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup
	$(BIN)/bodyplan demo

test: setup
	$(PYTEST) -n 2 -m "not slow and not contract and not long and not kernels and not faults and not browser" tests

test-contract: setup
	$(PYTEST) -n 2 -m "not slow" tests/space/test_contract.py $(wildcard tests/space/operators) \
		tests/space/test_operators.py tests/space/test_operators_reference.py tests/space/test_export_operators.py \
		tests/space/test_export_macros.py

test-long: setup
	$(PYTEST) -n 2 -m "long and not slow" tests

test-kernels: setup
	TRITON_INTERPRET=1 $(PYTEST) -n 2 -m kernels tests/kernels

test-faults: setup
	$(PYTEST) -m faults tests

test-slow: setup
	$(PYTEST) -m "slow or browser" tests

lint: setup
	$(BIN)/ruff check .

types: setup
	rm -rf build dist .wheelcheck && $(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(BIN)/python -m pip install --quiet --no-deps --target .wheelcheck dist/*.whl
	cd .wheelcheck && MYPYPATH=. ../$(BIN)/python -m mypy --config-file ../mypy.ini -p bodyplan

systems: setup
	$(BIN)/bodyplan systems --markdown > docs/systems.md

bench: setup
	$(BIN)/python -m bodyplan.experiments.benchmarks --out docs/benchmarks.md

clean:
	rm -rf $(VENV) build dist .wheelcheck *.egg-info
