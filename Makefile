# The two commands a newcomer needs: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-slow lint types format bench drill clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable '.[train,evals,analysis,dev]'
	mkdir -p .venv/links && ln -sfn ../.. .venv/links/sota_ml_researcher
	touch $(STAMP)

demo: install
	$(BIN)/ml-researcher demo

# One worker per core; what ends early takes over waiting tests of the others.
test: install
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

test-slow: install
	$(BIN)/python -m pytest -m slow

drill: install
	$(BIN)/python -m pytest -m drill -v

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m pip install -qq --editable '.[train,bench]'
	$(BIN)/python -m benchmarks --page docs/benchmarks.md

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
